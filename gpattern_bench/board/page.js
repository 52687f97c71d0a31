// Sorts, filters and switches what is already on the page; it fetches nothing.
(() => {
  "use strict";
  const root = document.documentElement;
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  root.classList.add("scripted");

  // Theme: the system's, until a choice is made.
  const theme = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const stored = (value) => {
    try {
      if (value) localStorage.setItem("gpattern-bench-theme", value);
      return localStorage.getItem("gpattern-bench-theme");
    } catch {
      return null;
    }
  };
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const showTheme = () => theme.setAttribute("aria-pressed", String(isDark()));
  const before = stored();
  if (before === "dark" || before === "light") root.dataset.theme = before;
  theme.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    stored(root.dataset.theme);
    showTheme();
  });
  system.addEventListener("change", showTheme);
  showTheme();

  // Sorting: what has no value stays last either way, equals keep their order.
  for (const table of all("table.sortable")) {
    const heads = all("thead tr:last-child > *", table);
    heads.forEach((head, column) => {
      if (!head.dataset.sort) return;
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      if (head.dataset.name) button.setAttribute("aria-label", head.dataset.name);
      head.append(button);
      if (!head.hasAttribute("aria-sort")) head.setAttribute("aria-sort", "none");
      const byText = head.dataset.sort === "text";
      button.addEventListener("click", () => {
        const now = head.getAttribute("aria-sort");
        const first = head.dataset.sort === "down" ? "descending" : "ascending";
        const second = first === "descending" ? "ascending" : "descending";
        const next = now === first ? second : first;
        for (const other of heads) if (other.dataset.sort) other.setAttribute("aria-sort", "none");
        head.setAttribute("aria-sort", next);
        const sign = next === "ascending" ? 1 : -1;
        const value = (row) => row.children[column].dataset.v ?? "";
        const order = (a, b) => {
          const [x, y] = [value(a), value(b)];
          if (x === "" || y === "") return (x === "") - (y === "");
          return sign * (byText ? x.localeCompare(y, "en") : Number(x) - Number(y));
        };
        const body = table.tBodies[0];
        body.append(...[...body.rows].sort(order));
        table.classList.toggle("by-rank", button.textContent === "F1" && next === "descending");
      });
    });
  }

  // Tabs: one view of a table at a time.
  all(".views").forEach((views, i) => {
    const list = document.createElement("div");
    list.setAttribute("role", "tablist");
    list.setAttribute("aria-label", "Views");
    const panels = all(".view", views);
    const tabs = panels.map((panel, k) => {
      const tab = document.createElement("button");
      tab.type = "button";
      tab.id = `tab-${i}-${k}`;
      tab.textContent = panel.dataset.title;
      tab.setAttribute("role", "tab");
      panel.id = `view-${i}-${k}`;
      panel.setAttribute("role", "tabpanel");
      panel.setAttribute("aria-labelledby", tab.id);
      tab.setAttribute("aria-controls", panel.id);
      list.append(tab);
      return tab;
    });
    const select = (k) => {
      tabs.forEach((tab, j) => {
        tab.setAttribute("aria-selected", String(j === k));
        tab.tabIndex = j === k ? 0 : -1;
        panels[j].hidden = j !== k;
      });
    };
    list.addEventListener("click", (event) => {
      const k = tabs.indexOf(event.target);
      if (k >= 0) select(k);
    });
    list.addEventListener("keydown", (event) => {
      const n = tabs.length;
      const at = tabs.indexOf(document.activeElement);
      const to = { ArrowRight: (at + 1) % n, ArrowLeft: (at + n - 1) % n, Home: 0, End: n - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      select(to);
      tabs[to].focus();
    });
    views.prepend(list);
    select(0);
  });

  // Legends: a method's button lifts it out of the charts beside it.
  for (const legend of all(".legend")) {
    const charts = all(".chart", legend.parentElement);
    for (const item of legend.children) {
      const button = document.createElement("button");
      button.type = "button";
      button.setAttribute("aria-pressed", "false");
      button.append(...item.childNodes);
      item.append(button);
      button.addEventListener("click", () => {
        button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
        const lit = new Set(
          all('button[aria-pressed="true"]', legend).map((b) => b.parentElement.dataset.m),
        );
        for (const chart of charts) {
          chart.classList.toggle("lit", lit.size > 0);
          for (const line of all(".line", chart)) line.classList.toggle("on", lit.has(line.dataset.m));
        }
      });
    }
  }

  // Filters: datasets show or hide tables; inputs and controls show or hide methods everywhere.
  const form = document.querySelector(".filters");
  const methods = new Map();
  for (const row of all("tr[data-inputs]")) {
    const inputs = row.dataset.inputs ? row.dataset.inputs.split("|") : [];
    methods.set(row.dataset.m, { inputs, control: row.dataset.kind === "control" });
  }
  const filter = () => {
    const dataset = form.querySelector('input[name="dataset"]:checked').value;
    for (const section of all("section.table")) {
      section.hidden = dataset !== "" && section.dataset.dataset !== dataset;
    }
    const barred = new Set(all('input[name="input"]:not(:checked)', form).map((box) => box.value));
    const controls = document.getElementById("controls").checked;
    const shows = ({ inputs, control }) =>
      (controls || !control) && !inputs.some((name) => barred.has(name));
    const shown = new Set([...methods].filter(([, about]) => shows(about)).map(([name]) => name));
    for (const part of all("[data-m]")) part.toggleAttribute("hidden", !shown.has(part.dataset.m));
    document.getElementById("shown").textContent = `${shown.size} of ${methods.size} methods`;
  };
  form.addEventListener("change", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  const follow = () => {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    const section = target && target.closest("section.table");
    if (!section || !section.hidden) return;
    for (const radio of all('input[name="dataset"]', form)) {
      radio.checked = radio.value === section.dataset.dataset;
    }
    filter();
    section.scrollIntoView();
  };
  addEventListener("hashchange", follow);
  if (methods.size) filter();
  follow();
})();
