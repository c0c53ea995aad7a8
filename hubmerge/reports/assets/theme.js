// Light, dark, or as the system is; and which recipe is being read.

const THEMES = ["system", "light", "dark"];

/** A file, or a page in a frame, may have no place to remember. */
function remembered(value) {
  try {
    if (value !== undefined) localStorage.setItem("hubmerge-theme", value);
    return localStorage.getItem("hubmerge-theme");
  } catch {
    return null;
  }
}

function setTheme(button, name) {
  if (name === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  button.querySelector(".theme-name").textContent = `Theme: ${name}`;
}

function themeButton(button) {
  let name = THEMES.includes(remembered()) ? remembered() : "system";
  setTheme(button, name);
  button.hidden = false;
  button.addEventListener("click", () => {
    name = THEMES[(THEMES.indexOf(name) + 1) % THEMES.length];
    remembered(name);
    setTheme(button, name);
  });
}

function markReading() {
  const links = new Map([...document.querySelectorAll(".contents li a")].map((a) => [a.hash.slice(1), a]));
  const seen = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries)
      if (isIntersecting) {
        for (const link of links.values()) link.removeAttribute("aria-current");
        links.get(target.id)?.setAttribute("aria-current", "true");
      }
  }, { rootMargin: "-20% 0px -70% 0px" });
  for (const section of document.querySelectorAll("section.recipe")) seen.observe(section);
}

themeButton(document.querySelector(".theme"));
markReading();
