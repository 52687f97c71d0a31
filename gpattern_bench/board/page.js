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

  // Picking a method: its legend entries and the signs before its name lift it out of all charts.
  const picked = new Set();
  const showPicked = () => {
    for (const button of all("button[data-pick]")) {
      button.setAttribute("aria-pressed", String(picked.has(button.dataset.pick)));
    }
    for (const row of all("tr[data-m]")) row.classList.toggle("picked", picked.has(row.dataset.m));
    for (const chart of all(".chart")) {
      const lines = all(".line", chart);
      for (const line of lines) line.classList.toggle("on", picked.has(line.dataset.m));
      chart.classList.toggle("lit", lines.some((line) => picked.has(line.dataset.m)));
    }
  };
  const pickable = (button, name) => {
    button.type = "button";
    button.dataset.pick = name;
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", () => {
      if (!picked.delete(name)) picked.add(name);
      showPicked();
      save();
    });
    return button;
  };
  for (const item of all(".legend > li")) {
    const button = pickable(document.createElement("button"), item.dataset.m);
    button.append(...item.childNodes);
    item.append(button);
  }
  for (const sign of all("tr[data-m] > th > .key")) {
    const button = pickable(document.createElement("button"), sign.closest("tr").dataset.m);
    button.className = "key-button";
    button.setAttribute("aria-label", `Highlight ${sign.parentElement.querySelector("a").textContent}`);
    sign.replaceWith(button);
    button.append(sign);
  }

  // Comparison of two methods, from differences that the page holds.
  const compare = document.getElementById("compare");
  const chosen = compare ? all("select", compare) : [];
  const showComparison = () => {
    if (!compare) return;
    const [a, b] = chosen.map((select) => select.selectedIndex);
    const [one, other] = chosen.map((select) => select.selectedOptions[0]);
    const n = chosen[0].length;
    const [i, j] = a < b ? [a, b] : [b, a];
    const at = i * n - (i * (i + 1)) / 2 + j - i - 1;
    const pairs = compare.dataset.differences.split(";");
    const cells = a === b ? [] : pairs[at].split(",");
    const sign = a < b ? 1 : -1;
    const print = (x) => `${x < 0 ? "\u2212" : "+"}${Math.abs(x).toFixed(1)}`;
    const heads = all("thead th", compare);
    [heads[1].textContent, heads[2].textContent] = [one.textContent, other.textContent];
    all("tbody tr", compare).forEach((row, k) => {
      const texts = [one, other].map((option) => option.dataset.f1.split(",")[k] || "\u2013");
      const [difference, ...ends] = (cells[k] || "").split(" ").filter(Boolean).map((x) => sign * x);
      const [low, high] = ends.sort((x, y) => x - y);
      let better = "";
      if (difference !== undefined) {
        texts.push(print(difference) + (ends.length ? ` (${print(low)} to ${print(high)})` : ""));
        better = low > 0 ? one.textContent : high < 0 ? other.textContent : "cannot be told apart";
      } else texts.push("\u2013");
      texts.forEach((text, m) => (row.children[m + 1].textContent = text));
      row.children[4].textContent = better;
      row.children[4].className = low > 0 || high < 0 ? "better" : "";
    });
  };
  for (const select of chosen) {
    select.addEventListener("change", () => {
      showComparison();
      save();
    });
  }

  // Filters: datasets show or hide tables; inputs and controls show or hide methods everywhere.
  const form = document.querySelector(".filters");
  const methods = new Map();
  for (const row of all("tr[data-inputs]")) {
    const inputs = row.dataset.inputs ? row.dataset.inputs.split("|") : [];
    methods.set(row.dataset.m, { inputs, control: row.dataset.kind === "control" });
  }
  const search = document.getElementById("search");
  const texts = new Map();
  for (const profile of all(".profile")) {
    texts.set(profile.dataset.m, profile.querySelector("summary").textContent.toLowerCase());
  }
  const columns = all('input[name="column"]', form);
  // Where a table is wider than its box, say so.
  const hint = () => {
    for (const box of all(".scroll")) {
      box.classList.toggle("overflows", box.scrollWidth > box.clientWidth + 1);
    }
  };
  const filter = () => {
    const dataset = form.querySelector('input[name="dataset"]:checked').value;
    for (const section of all("section.table")) {
      section.hidden = dataset !== "" && section.dataset.dataset !== dataset;
    }
    const barred = new Set(all('input[name="input"]:not(:checked)', form).map((box) => box.value));
    const controls = document.getElementById("controls").checked;
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const found = (name) => words.every((word) => `${name} ${texts.get(name) ?? ""}`.includes(word));
    const shows = (name, { inputs, control }) =>
      (controls || !control) && !inputs.some((input) => barred.has(input)) && found(name);
    const shown = new Set([...methods].filter(([n, about]) => shows(n, about)).map(([n]) => n));
    for (const part of all("[data-m]")) {
      part.toggleAttribute("hidden", methods.has(part.dataset.m) && !shown.has(part.dataset.m));
    }
    document.getElementById("shown").textContent = `${shown.size} of ${methods.size} methods`;
    const board = document.getElementById("board");
    for (const box of columns) board.classList.toggle(`show-${box.value}`, box.checked);
    hint();
  };

  // The address keeps what was chosen, so that it can be sent to somebody.
  const datasets = all('input[name="dataset"]', form);
  const inputs = all('input[name="input"]', form);
  const save = () => {
    const state = new URLSearchParams();
    const put = (key, value) => value && state.set(key, value);
    const dataset = datasets.find((radio) => radio.checked);
    if (dataset !== datasets[0]) state.set("dataset", dataset.value);
    put("without", inputs.filter((box) => !box.checked).map((box) => box.value).join(","));
    put("controls", document.getElementById("controls").checked ? "" : "no");
    put("find", search.value);
    put("columns", columns.filter((box) => box.checked).map((box) => box.value).join(","));
    put("pick", [...picked].join(","));
    const pair = chosen.map((select) => select.value);
    put("compare", chosen.some((s, k) => s.selectedIndex !== k) ? pair.join(",") : "");
    const query = state.size ? `?${state}` : "";
    try {
      history.replaceState(null, "", location.href.split(/[?#]/)[0] + query + location.hash);
    } catch {
      // A page inside a frame may have no address of its own.
    }
  };
  const restore = () => {
    const state = new URLSearchParams(location.search);
    const listed = (key) => (state.get(key) ?? "").split(",").filter(Boolean);
    const asked = datasets.find((radio) => radio.value === state.get("dataset")) ?? datasets[0];
    if (asked) asked.checked = true;
    for (const box of inputs) box.checked = !listed("without").includes(box.value);
    document.getElementById("controls").checked = state.get("controls") !== "no";
    search.value = state.get("find") ?? "";
    for (const box of columns) box.checked = listed("columns").includes(box.value);
    picked.clear();
    for (const name of listed("pick")) if (methods.has(name)) picked.add(name);
    listed("compare").slice(0, chosen.length).forEach((name, k) => {
      if ([...chosen[k].options].some((option) => option.value === name)) chosen[k].value = name;
    });
  };
  form.addEventListener("change", () => {
    filter();
    save();
  });
  search.addEventListener("input", () => {
    filter();
    save();
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  const follow = () => {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (target && target.tagName === "DETAILS") target.open = true;
    const section = target && target.closest("section.table");
    if (!section || !section.hidden) return;
    for (const radio of datasets) radio.checked = radio.value === section.dataset.dataset;
    filter();
    save();
    section.scrollIntoView();
  };
  addEventListener("popstate", () => {
    restore();
    show();
  });
  addEventListener("hashchange", follow);
  addEventListener("resize", hint);
  const show = () => {
    if (methods.size) filter();
    showPicked();
    showComparison();
  };
  restore();
  show();
  follow();
  hint();
})();
