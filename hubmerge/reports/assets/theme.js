// The theme (light, dark or as the system), and the highlighted recipe in the contents.

const THEMES = ["system", "light", "dark"];

/** The stored theme, after storing `value` if given; null if the page has no local storage. */
function storedTheme(value) {
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

function setUpThemeButton(button) {
  let name = THEMES.includes(storedTheme()) ? storedTheme() : "system";
  setTheme(button, name);
  button.hidden = false;
  button.addEventListener("click", () => {
    name = THEMES[(THEMES.indexOf(name) + 1) % THEMES.length];
    storedTheme(name);
    setTheme(button, name);
  });
}

function highlightCurrentRecipe() {
  const links = new Map([...document.querySelectorAll(".contents li a")].map((a) => [a.hash.slice(1), a]));
  const observer = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries)
      if (isIntersecting) {
        for (const link of links.values()) link.removeAttribute("aria-current");
        links.get(target.id)?.setAttribute("aria-current", "true");
      }
  }, { rootMargin: "-20% 0px -70% 0px" });
  for (const section of document.querySelectorAll("section.recipe")) observer.observe(section);
}

setUpThemeButton(document.querySelector(".theme"));
highlightCurrentRecipe();
