"""Pages for people: HTML without scripts at the addresses that clients print.

routes              the addresses, and who gets a page; imports the rest at the first page
views               the pages by name
repositories        the list, with search
repository_page     one repository: card, steps, how to load it, what it came from and led to
comparison          two steps side by side
file_pages          folders and files
history_pages       commits, discussions and pull requests
errors_page         an error as a sentence
------------------------------------------------------------ below: no requests
cards, steps, lineage, loading, tensors    what is read of a commit
card_html           untrusted Markdown as inert HTML
charts              curves as shapes
links, rendering    addresses; templates and the headers of every page
"""
