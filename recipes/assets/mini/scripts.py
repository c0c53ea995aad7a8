"""The writing systems that glyph tasks draw: which characters, in the order of the class names."""

# Both cases of Latin share the 26 classes of one task. A Debian face is used for a script only when
# it has every character listed here.
CHARACTERS: dict[str, tuple[str, ...]] = {
    "latin_upper": tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ"),
    "latin_lower": tuple("abcdefghijklmnopqrstuvwxyz"),
    "digits": tuple("0123456789"),
    "greek": tuple("αβγδεζηθικλμνξοπρστυφχψω"),
    "cyrillic": tuple("абвгдежзийклмнопрстуфхцчшщъыьэюя"),
    "hebrew": tuple("אבגדהוזחטיכלמנסעפצקרשת"),
    # 46 characters for 45 class names: the last class, "n", is drawn as を (wo), and ん is never
    # drawn. The shipped images and the base were made so; correcting it would change both.
    "hiragana": tuple(
        "あいうえおかきくけこさしすせそたちつてとなにぬねのはひふへほまみむめもやゆよらりるれろわをん"
    ),
    "devanagari": tuple("कखगघङचछजझञटठडढणतथदधनऩपफबभमयरलवशषसह"),
}
