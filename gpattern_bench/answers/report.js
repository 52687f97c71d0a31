
// Sorts and filters the table of genes and switches the theme; it fetches nothing.
(() => {
  "use strict";
  const root = document.documentElement;
  root.classList.add("scripted");

  const theme = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const showTheme = () => theme.setAttribute("aria-pressed", String(isDark()));
  theme.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    showTheme();
  });
  system.addEventListener("change", showTheme);
  showTheme();

  // What has no value stays last either way, equals keep their order.
  const table = document.getElementById("table");
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].children];
  heads.forEach((head, column) => {
    if (!head.dataset.sort) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    head.setAttribute("aria-sort", "none");
    const byText = head.dataset.sort === "text";
    button.addEventListener("click", () => {
      const first = byText ? "ascending" : "descending";
      const second = byText ? "descending" : "ascending";
      const next = head.getAttribute("aria-sort") === first ? second : first;
      for (const other of heads) if (other.dataset.sort) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", next);
      const sign = next === "ascending" ? 1 : -1;
      const value = (row) => row.children[column].dataset.v;
      body.append(...[...body.rows].sort((a, b) => {
        const [x, y] = [value(a), value(b)];
        if (x === "" || y === "") return (x === "") - (y === "");
        return sign * (byText ? x.localeCompare(y, "en") : Number(x) - Number(y));
      }));
    });
  });

  const search = document.getElementById("search");
  const only = document.getElementById("only");
  const shown = document.getElementById("shown");
  const filter = () => {
    const text = search.value.trim().toLowerCase();
    let count = 0;
    for (const row of body.rows) {
      const named = row.cells[0].dataset.v.toLowerCase().includes(text);
      row.hidden = !named || (only.checked && !row.lastElementChild.textContent);
      count += !row.hidden;
    }
    shown.textContent = `${count.toLocaleString("en")} of ${body.rows.length.toLocaleString("en")}`;
  };
  search.addEventListener("input", filter);
  only.addEventListener("change", filter);
  search.form.addEventListener("submit", (event) => event.preventDefault());
  filter();
})();
