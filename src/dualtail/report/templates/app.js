"use strict";
/* The page's script: draws the charts, the table of classes and the drawer of one class.
   Names of classes and files come from users: they only ever become text nodes. */
(() => {
  const DATA = JSON.parse(document.getElementById("data").textContent);
  const GROUPS = ["Many", "Medium", "Few"];
  const GROUP_COLORS = ["var(--many)", "var(--medium)", "var(--few)"];
  const GROUP_SYMBOLS = ["circle", "square", "triangle-up"];
  const ROW_HEIGHT = 32; // of the class table, kept in step with its rows when they are first drawn
  const media = (query) => window.matchMedia(query);
  const phone = media("(max-width: 40rem)");

  // --- building elements

  function element(tag, attributes = {}, ...children) {
    const found = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (value === null || value === undefined || value === false) continue;
      if (name.startsWith("on")) found.addEventListener(name.slice(2), value);
      else if (name === "style") found.style.cssText = value;
      else found.setAttribute(name, value === true ? "" : value);
    }
    found.append(...children.filter((child) => child !== null && child !== undefined));
    return found;
  }

  function swatch(style) {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("class", "swatch" + (style.symbol.endsWith("-open") ? " open" : ""));
    svg.setAttribute("aria-hidden", "true");
    svg.style.color = style.color;
    const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
    use.setAttribute("href", "#s-" + style.symbol.replace("-open", ""));
    svg.append(use);
    return svg;
  }

  // A model's name; its symbol stays with the first word.
  function named(style, name) {
    const [first, ...rest] = name.split(" ");
    return [element("span", { class: "first" }, swatch(style), " ", first), rest.length ? " " + rest.join(" ") : ""];
  }

  // --- numbers

  const percent = (fraction, digits = 1) => (fraction === null ? "–" : (100 * fraction).toFixed(digits));
  const count = (number) => number.toLocaleString("en-GB");
  const times = (log) => {
    const ratio = Math.exp(log);
    return ratio >= 100 ? ratio.toFixed(0) : ratio >= 10 ? ratio.toFixed(1) : ratio >= 0.1 ? ratio.toFixed(2) : ratio.toPrecision(2);
  };

  // --- charts

  const waiting = []; // charts that are not drawn yet: functions
  const drawn = []; // charts that are: functions that draw them again

  function cssColor(text) {
    const [, name, alpha] = /^var\((--[\w-]+)\)(?:\/([\d.]+))?$/.exec(text) || [];
    if (!name) return text;
    const value = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
    if (!alpha) return value;
    const hex = value.length === 4 ? value.replace(/[0-9a-f]/gi, "$&$&") : value;
    const [red, green, blue] = [1, 3, 5].map((place) => parseInt(hex.slice(place, place + 2), 16));
    return `rgba(${red},${green},${blue},${alpha})`;
  }

  function colored(value) {
    if (typeof value === "string") return value.startsWith("var(") ? cssColor(value) : value;
    if (Array.isArray(value)) return typeof value[0] === "number" ? value : value.map(colored);
    if (value && typeof value === "object") return Object.fromEntries(Object.entries(value).map(([key, part]) => [key, colored(part)]));
    return value;
  }

  // Plotly knows some HTML; a name must show as it is.
  const plain = (name) => name.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;").replace(/%\{/g, "%\u200b{");

  // Ticks of a logarithmic axis: powers of ten, with 2 and 5 between them where the axis is short.
  function logTicks(values) {
    const known = values.filter((value) => value > 0);
    if (!known.length) return {};
    const [low, high] = [Math.log10(Math.min(...known)), Math.log10(Math.max(...known))];
    const steps = high - low < 3 ? [1, 2, 5] : [1];
    const ticks = [];
    for (let power = Math.floor(low) - 1; power <= Math.ceil(high); power++) {
      ticks.push(...steps.map((step) => Number((step * 10 ** power).toPrecision(1))));
    }
    return { tickvals: ticks, ticktext: ticks.map((tick) => tick.toLocaleString("en-GB", { maximumSignificantDigits: 2 })) };
  }

  function axis(own = {}, values = []) {
    return {
      gridcolor: "var(--grid)", linecolor: "var(--rule)", zerolinecolor: "var(--rule)", zeroline: false, automargin: true,
      ...(own.type === "log" ? logTicks(values) : {}), ...own, title: { standoff: 10, ...own.title },
      fixedrange: media("(pointer: coarse)").matches,
    };
  }

  function layoutOf(own, traces) {
    const along = (way) => traces.flatMap((trace) => trace[way] || []).filter((value) => typeof value === "number");
    return colored({
      font: { family: getComputedStyle(document.body).fontFamily, size: 12.5, color: "var(--ink)" },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", margin: { l: 50, r: 14, t: 10, b: 44 },
      hoverlabel: { bgcolor: "var(--panel)", bordercolor: "var(--rule)", font: { color: "var(--ink)" } },
      legend: { orientation: "h", x: 0, y: 1, yanchor: "bottom", xanchor: "left", itemsizing: "constant" },
      hovermode: "closest", dragmode: media("(pointer: coarse)").matches ? false : "zoom", ...own,
      xaxis: axis(own.xaxis, along("x")), yaxis: axis(own.yaxis, along("y")),
    });
  }

  function draw(figure, plot, runKey) {
    const names = runKey in DATA.runs ? DATA.runs[runKey].classes.names : [];
    const traces = figure.data.map((trace) => {
      if (!trace.customdata || trace.text) return colored(trace);
      return colored({ ...trace, text: trace.customdata.map((index) => plain(names[index])), textposition: trace.type === "bar" ? "none" : undefined });
    });
    plot.classList.remove("waiting");
    Plotly.react(plot, traces, layoutOf(figure.layout, figure.data), { responsive: true, displayModeBar: false, showTips: false });
    if (!plot.dataset.linked) {
      plot.dataset.linked = "yes";
      offerPicture(plot);
      plot.on("plotly_click", (event) => {
        const index = event.points[0]?.customdata;
        if (typeof index === "number" && runKey in DATA.runs) openClass(runKey, index);
      });
    }
  }

  function offerPicture(plot) {
    const name = "dualtail-" + (plot.closest("figure").dataset.chart || "classes");
    const save = () => Plotly.downloadImage(plot, { format: "svg", filename: name, width: plot.clientWidth, height: plot.clientHeight });
    const hint = "save this chart as a picture; drag in it to zoom, double-click to zoom out";
    plot.parentElement.querySelector("figcaption").append(element("button", { type: "button", class: "save", title: hint, onclick: save }, "SVG"));
  }

  async function loadLibrary() {
    const packed = atob(document.getElementById("library").textContent);
    const bytes = Uint8Array.from(packed, (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
    if (!window.Plotly) throw new Error("the charts' library did not start");
  }

  function prepareCharts() {
    for (const figure of document.querySelectorAll("figure[data-chart]")) {
      const plot = figure.querySelector(".plot"), key = figure.dataset.run;
      const charts = key in DATA.runs ? DATA.runs[key].charts : DATA.shared;
      addChart(plot, () => draw(charts[figure.dataset.chart], plot, key));
    }
  }

  function addChart(plot, paint) {
    plot.classList.add("waiting");
    waiting.push({ plot, paint });
  }

  function paintWaiting(chosen) {
    for (const item of waiting.filter(chosen)) {
      waiting.splice(waiting.indexOf(item), 1);
      drawn.push(item);
      item.paint();
    }
  }

  const visible = (item) => item.plot.offsetParent !== null;
  const near = (item) => {
    const box = item.plot.getBoundingClientRect();
    return visible(item) && box.top < 1.5 * window.innerHeight && box.bottom > -0.5 * window.innerHeight;
  };

  // What is near the window comes first, the rest when nothing else is to do, so that paper gets every chart.
  function startPainting() {
    const step = () => {
      const next = waiting.find(near) || waiting.find(visible);
      if (!next) return;
      paintWaiting((item) => item === next);
      idle(step);
    };
    idle(step);
    window.addEventListener("scroll", () => paintWaiting(near), { passive: true });
    startPainting.again = () => idle(step);
  }
  const idle = (work) => ("requestIdleCallback" in window ? requestIdleCallback(work, { timeout: 300 }) : setTimeout(work, 30));

  function repaint() {
    if (window.Plotly) for (const item of drawn) if (visible(item)) item.paint();
  }

  // --- what is known of the classes

  class Run {
    constructor(key, data) {
      Object.assign(this, { key, data, classes: data.classes, split: data.split });
      this.size = this.classes.names.length;
      this.models = this.classes.models;
      this.main = this.models.find((model) => model.kind === "ensemble") || this.models[this.models.length - 1];
      this.members = this.models.filter((model) => model.kind === "member");
    }

    accuracy(model, index) {
      const total = this.classes.test[index];
      return total ? model.correct[index] / total : null;
    }

    isTail(index) {
      return this.classes.p !== null && this.classes.d[index] === 2 && this.classes.p[index] === 2;
    }

    // How much the ensemble adds to the mean of its members, in fractions.
    gain(index) {
      const own = this.accuracy(this.main, index);
      if (own === null) return null;
      return own - this.members.reduce((sum, model) => sum + this.accuracy(model, index), 0) / this.members.length;
    }

    images() {
      if (!this.pictures) this.pictures = JSON.parse(document.getElementById("images-" + this.key).textContent);
      return this.pictures;
    }
  }

  const RUNS = Object.fromEntries(Object.entries(DATA.runs).map(([key, data]) => [key, new Run(key, data)]));

  // --- the class explorer

  class Explorer {
    constructor(root, run, scatter) {
      Object.assign(this, { root, run, scatter, sort: null, shown: [], first: -1 });
      this.box = root.querySelector(".window");
      this.head = root.querySelector("thead");
      this.body = root.querySelector("tbody");
      this.form = root.querySelector("form");
      this.output = root.querySelector("output");
      this.lower = run.classes.names.map((name) => name.toLowerCase());
      if (run.classes.p === null) for (const part of root.querySelectorAll(".needs-p")) part.remove();
      this.columns = this.makeColumns();
      this.makeHead();
      this.listen();
      const start = this.columns.find((column) => column.key === "main");
      this.sortBy(start || this.columns[0], 1);
    }

    makeColumns() {
      const { run } = this, { classes } = run;
      const most = Math.log1p(Math.max(...classes.train));
      const columns = [
        { key: "name", title: "class", value: (i) => classes.names[i], text: true },
        { key: "d", title: "D", value: (i) => classes.d[i], tag: "D", text: true, wide: true },
      ];
      if (classes.p) columns.push({ key: "p", title: "P", value: (i) => classes.p[i], tag: "P", text: true, wide: true });
      columns.push({
        key: "train", title: "train", hint: "training images", value: (i) => classes.train[i], show: count,
        bar: (value) => Math.log1p(value) / most, color: "var(--medium)",
      });
      const prior = classes.priors[classes.priors.length - 1];
      if (prior) {
        columns.push({
          key: "prior", title: "prior ×", hint: `estimated pre-training prior, times uniform (${prior.name})`, wide: true,
          value: (i) => prior.log[i], show: times,
        });
      }
      const rest = ["member", "zero_shot"].flatMap((kind) => run.models.filter((model) => model.kind === kind && model !== run.main));
      for (const model of [run.main, ...rest]) {
        const main = model === run.main;
        columns.push({
          key: main ? "main" : model.kind + "-" + model.name, title: model.label, style: model, wide: !main, show: percent,
          value: (i) => run.accuracy(model, i), bar: (value) => value, color: model.color,
          hint: `accuracy of ${model.label}, per cent`,
        });
        if (main && run.members.length > 1) {
          columns.push({
            key: "gain", title: "gain", hint: "ensemble minus the mean of its members, in points", wide: true,
            value: (i) => run.gain(i), show: (value) => (value > 0.0005 ? "+" : "") + percent(value),
          });
        }
      }
      columns.push({ key: "test", title: run.split, hint: `${run.split} images`, value: (i) => classes.test[i], show: count, wide: true });
      return columns;
    }

    makeHead() {
      const cells = this.columns.map((column) => {
        const label = column.style ? named(column.style, column.title) : [column.title];
        const button = element("button", { type: "button", title: column.hint, onclick: () => this.sortBy(column) }, ...label);
        column.cell = element("th", { scope: "col", "data-column": column.key, class: [column.text ? "" : "n", column.wide ? "wide" : ""].join(" ") }, button);
        return column.cell;
      });
      this.head.replaceChildren(element("tr", {}, ...cells));
    }

    listen() {
      const { form } = this;
      form.addEventListener("submit", (event) => event.preventDefault());
      for (const event of ["input", "change"]) form.addEventListener(event, () => this.filter());
      form.elements.tail?.addEventListener("click", () => {
        const on = form.elements.d.value === "2" && form.elements.p.value === "2";
        form.elements.d.value = form.elements.p.value = on ? "" : "2";
        this.filter();
      });
      form.elements.clear.addEventListener("click", () => {
        form.reset();
        this.filter();
      });
      this.box.addEventListener("scroll", () => this.drawRows(), { passive: true });
      this.body.addEventListener("click", (event) => {
        const row = event.target.closest("tr[data-class]");
        if (row && !event.target.closest("a")) openClass(this.run.key, Number(row.dataset.class));
      });
    }

    sortBy(column, direction) {
      const numeric = !column.text || column.tag;
      const again = this.sort && this.sort.column === column;
      this.sort = { column, direction: direction || (again ? -this.sort.direction : column.text || column.style ? 1 : -1) };
      for (const other of this.columns) other.cell.removeAttribute("aria-sort");
      column.cell.setAttribute("aria-sort", this.sort.direction > 0 ? "ascending" : "descending");
      const values = this.run.classes.names.map((_, index) => column.value(index));
      const collator = new Intl.Collator("en", { numeric: true });
      const compare = numeric ? (a, b) => a - b : collator.compare;
      this.order = values.map((_, index) => index).sort((a, b) => {
        // What has no value comes last either way.
        if (values[a] === null || values[b] === null) return (values[a] === null) - (values[b] === null) || a - b;
        return this.sort.direction * compare(values[a], values[b]) || a - b;
      });
      this.filter();
    }

    matches(index) {
      const { classes } = this.run;
      return this.lower[index].includes(this.wanted.text) &&
        (this.wanted.d === "" || classes.d[index] === Number(this.wanted.d)) &&
        (this.wanted.p === "" || classes.p[index] === Number(this.wanted.p));
    }

    filter() {
      const { search, d, p, tail } = this.form.elements;
      this.wanted = { text: search.value.trim().toLowerCase(), d: d.value, p: p ? p.value : "" };
      tail?.setAttribute("aria-pressed", d.value === "2" && p.value === "2");
      this.shown = this.order.filter((index) => this.matches(index));
      this.output.textContent = `${count(this.shown.length)} of ${count(this.run.size)} classes`;
      this.box.scrollTop = 0;
      this.first = -1;
      this.drawRows();
      clearTimeout(this.fading);
      this.fading = setTimeout(() => this.fadeScatter(), 150);
    }

    // The points of classes that the table leaves out fade.
    fadeScatter() {
      this.scatter.matches = this.shown.length === this.run.size ? null : (index) => this.matches(index);
      this.scatter.refresh();
    }

    // Only the rows in sight exist, so that thousands of classes scroll as quickly as ten.
    drawRows(everything = false) {
      const height = this.rowHeight || ROW_HEIGHT;
      const room = everything ? this.shown.length : Math.ceil((this.box.clientHeight || 544) / height) + 20;
      const first = everything ? 0 : Math.max(0, Math.min(Math.floor(this.box.scrollTop / height) - 10, this.shown.length - room));
      if (first === this.first && !everything) return;
      this.first = first;
      const rows = this.shown.slice(first, first + room);
      const pad = (size) => element("tr", { class: "pad", "aria-hidden": true }, element("td", { colspan: this.columns.length, style: `height: ${size * height}px` }));
      const below = this.shown.length - first - rows.length;
      this.body.replaceChildren(...(first ? [pad(first)] : []), ...rows.map((index) => this.row(index)), ...(below > 0 ? [pad(below)] : []));
      if (!this.rowHeight && rows.length) this.rowHeight = this.body.querySelector("tr[data-class]").getBoundingClientRect().height || undefined;
    }

    row(index) {
      const cells = this.columns.map((column) => {
        const value = column.value(index), wide = column.wide ? " wide" : "";
        if (column.key === "name") return element("th", { scope: "row", title: value }, element("a", { href: `#${this.run.key}-class-${index}` }, value));
        if (column.tag) return element("td", { class: wide.trim(), "data-column": column.key }, tag(column.tag, value));
        const bar = column.bar && value !== null ? { style: `--v: ${column.bar(value).toFixed(3)}; --c: ${column.color}` } : {};
        const text = value === null ? "–" : column.show(value);
        return element("td", { class: `n${wide}${column.bar ? " bar" : ""}`, "data-column": column.key, "data-value": value === null ? "" : value, ...bar }, text);
      });
      const open = drawer.run === this.run && drawer.index === index;
      return element("tr", { "data-class": index, class: open ? "open" : null }, ...cells);
    }

    markOpen() {
      for (const row of this.body.querySelectorAll("tr[data-class]")) {
        row.classList.toggle("open", drawer.run === this.run && drawer.index === Number(row.dataset.class));
      }
    }
  }

  // --- any two of the classes' numbers against each other

  class Scatter {
    constructor(root, run) {
      Object.assign(this, { root, run, matches: null });
      this.plot = root.querySelector(".plot");
      this.axes = this.makeAxes(root.dataset.scatter === "priors");
      const start = this.axes.length > 2 && root.dataset.scatter === "priors" ? { x: 1, y: 2 } : { x: 0, y: this.axes.length - 1 };
      this.chosen = {};
      for (const select of root.querySelectorAll("select[data-axis]")) {
        const way = select.dataset.axis;
        select.replaceChildren(...this.axes.map((found, place) => element("option", { value: place }, found.title)));
        select.value = start[way];
        this.chosen[way] = this.axes[start[way]];
        select.addEventListener("change", () => {
          this.chosen[way] = this.axes[Number(select.value)];
          this.refresh();
        });
      }
      addChart(this.plot, () => this.paint());
    }

    makeAxes(onlyPriors) {
      const { run } = this, { classes } = run;
      const spread = classes.names.map((_, index) => ((index * 0.618034) % 1) - 0.5);
      const accuracy = (model) => (index) => {
        const value = run.accuracy(model, index);
        return value === null ? null : 100 * (value + spread[index] * Math.min(0.9 / Math.max(classes.test[index], 1), 0.025));
      };
      const counts = { key: "train", title: "training images", value: (i) => classes.train[i], log: true };
      const priors = classes.priors.map((prior) => (
        { key: "prior " + prior.name, title: `prior of ${prior.name}, times uniform`, value: (i) => Math.exp(prior.log[i]), log: true }));
      const rest = run.models.map((model) => ({ key: model.kind + model.name, title: `accuracy of ${model.label}, %`, value: accuracy(model) }));
      return [counts, ...priors, ...(onlyPriors ? [] : rest)];
    }

    // Draw again, if it was drawn before.
    refresh() {
      if (this.plot.dataset.linked) this.paint();
    }

    paint() {
      const { run } = this, { classes } = run, { x, y } = this.chosen;
      const cells = new Map();
      for (let index = 0; index < run.size; index++) {
        if (x.value(index) === null || y.value(index) === null) continue;
        const cell = classes.d[index] * 3 + (classes.p ? classes.p[index] : classes.d[index]);
        if (!cells.has(cell)) cells.set(cell, []);
        cells.get(cell).push(index);
      }
      const traces = [...cells.entries()].sort((a, b) => a[0] - b[0]).map(([cell, indices]) => ({
        type: "scatter", mode: "markers", x: indices.map(x.value), y: indices.map(y.value), customdata: indices, showlegend: false,
        hovertemplate: `%{text}<br>${plain(x.title)}: %{x:.3~g}<br>${plain(y.title)}: %{y:.3~g}<extra></extra>`,
        marker: { symbol: GROUP_SYMBOLS[Math.floor(cell / 3)], color: GROUP_COLORS[cell % 3], size: run.size > 300 ? 6 : 9, opacity: 0.85 },
        unselected: { marker: { opacity: 0.08 } },
        selectedpoints: this.matches ? indices.flatMap((index, place) => (this.matches(index) ? [place] : [])) : undefined,
      }));
      const layout = { xaxis: this.scale(x), yaxis: this.scale(y), uirevision: x.key + y.key };
      layout.legend = { orientation: "h", x: 0, y: 1, yanchor: "bottom", itemclick: false, itemdoubleclick: false };
      draw({ data: [...traces, ...this.legend(), ...this.ring(x, y)], layout }, this.plot, run.key);
    }

    scale(chosen) {
      return { title: { text: plain(chosen.title) }, type: chosen.log ? "log" : "linear" };
    }

    // Symbols are D-groups, colours P-groups.
    legend() {
      const { classes } = this.run;
      const only = (symbol, color, name) => ({ type: "scatter", mode: "markers", x: [null], y: [null], name, hoverinfo: "skip", marker: { symbol, color, size: 9 } });
      const used = (kind) => [0, 1, 2].filter((group) => classes[kind]?.includes(group));
      return [
        ...used("d").map((group) => only(GROUP_SYMBOLS[group], classes.p ? "var(--rule)" : GROUP_COLORS[group], "D-" + GROUPS[group])),
        ...used("p").map((group) => only("circle", GROUP_COLORS[group], "P-" + GROUPS[group])),
      ];
    }

    // Around the class that is open.
    ring(x, y) {
      const { run, index } = drawer;
      if (run !== this.run || x.value(index) === null || y.value(index) === null) return [];
      const marker = { symbol: "circle-open", color: "var(--ink)", size: 18, line: { width: 2 } };
      return [{ type: "scatter", mode: "markers", x: [x.value(index)], y: [y.value(index)], hoverinfo: "skip", showlegend: false, marker }];
    }
  }

  function tag(kind, group) {
    return element("span", { class: "tag" + (group === 2 ? " few" : "") }, `${kind}-${GROUPS[group]}`);
  }

  // --- one class

  const drawer = { root: document.getElementById("drawer"), run: null, index: null, back: null };

  function openClass(key, index) {
    const hash = `#${key}-class-${index}`;
    if (location.hash === hash) route();
    else location.hash = hash;
  }

  function closeDrawer() {
    if (drawer.index === null) return;
    const { run } = drawer;
    Object.assign(drawer, { run: null, index: null });
    drawer.root.hidden = true;
    history.replaceState(null, "", "#" + run.key + "-classes");
    markOpen(run);
    drawer.back?.focus({ preventScroll: true });
  }

  function showClass(run, index) {
    if (drawer.root.hidden) drawer.back = document.activeElement;
    Object.assign(drawer, { run, index });
    const { classes } = run, order = explorers[run.key].shown, place = order.indexOf(index);
    const step = (way, label, symbol) => {
      const next = order[place + way];
      return element("button", { type: "button", disabled: place < 0 || next === undefined, "aria-label": label, title: label, onclick: () => openClass(run.key, next) }, symbol);
    };
    const title = element("h2", { id: "drawer-title", tabindex: -1 }, classes.names[index]);
    const tags = [tag("D", classes.d[index])];
    if (classes.p) tags.push(tag("P", classes.p[index]));
    if (run.isTail(index)) tags.push(element("span", { class: "tag few" }, "tail-tail"));
    const facts = [`class ${index}`, `${count(classes.train[index])} training images`, `${count(classes.test[index])} ${run.split} images`];
    if (classes.sure) facts.push(`in its P-group with probability ${classes.sure[index].toFixed(2)}`);
    drawer.root.replaceChildren(
      element("header", {},
        step(-1, "previous class of the table", "←"), step(1, "next class of the table", "→"),
        element("span", {}, place < 0 ? "" : `${count(place + 1)} of ${count(order.length)}`),
        element("button", { type: "button", "aria-label": "close", title: "close (Esc)", onclick: closeDrawer }, "✕")),
      title, element("div", { class: "tags" }, ...tags), element("p", { class: "note" }, facts.join(" · ")),
      ...[accuracies, confusions, pictures, mapsOfClass, priors].map((part) => part(run, index)).filter(Boolean),
    );
    drawer.root.hidden = false;
    drawer.root.scrollTop = 0;
    title.focus({ preventScroll: true });
    markOpen(run);
  }

  function markOpen(run) {
    explorers[run.key].markOpen();
    for (const scatter of scatters) if (scatter.run === run) scatter.refresh();
  }

  function block(title, ...content) {
    return element("section", {}, element("h3", {}, title), ...content);
  }

  function simpleTable(heads, rows) {
    const head = element("tr", {}, ...heads.map((text, place) => element("th", { scope: "col", class: place ? "n" : null }, text)));
    return element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows));
  }

  function accuracies(run, index) {
    const total = run.classes.test[index];
    if (!total) return block("Accuracy", element("p", { class: "note" }, `No ${run.split} images of this class.`));
    const rows = run.models.map((model) => {
      const right = model.correct[index], [low, high] = run.classes.intervals[`${right}/${total}`];
      const cells = [percent(right / total), `${right} of ${total}`, `${percent(low)}–${percent(high)}`];
      return element("tr", {}, element("th", { scope: "row" }, ...named(model, model.label)), ...cells.map((text) => element("td", { class: "n" }, text)));
    });
    return block("Accuracy", simpleTable(["model", "%", "right", "interval"], rows));
  }

  function priors(run, index) {
    if (!run.classes.priors.length) return null;
    const rows = run.classes.priors.map((prior) => {
      const log = prior.log[index], error = prior.margin ? prior.margin[index] : null;
      const model = run.models.find((found) => found.kind === "zero_shot" && found.name === prior.name);
      const head = element("th", { scope: "row" }, ...(model ? [swatch(model), "\u00a0"] : []), prior.name);
      const interval = error === null ? "–" : `${times(log - error)}–${times(log + error)}`;
      return element("tr", {}, head, element("td", { class: "n" }, times(log)), element("td", { class: "n" }, interval));
    });
    return block("Pre-training prior", simpleTable(["backbone", "times uniform", "interval"], rows));
  }

  function confusions(run, index) {
    const list = (title, flat) => {
      const items = [];
      for (let place = 0; place < flat.length; place += 2) {
        items.push(element("li", {}, element("a", { href: `#${run.key}-class-${flat[place]}` }, run.classes.names[flat[place]]), element("span", {}, `${flat[place + 1]}×`)));
      }
      return element("div", {}, element("h3", {}, title), items.length ? element("ul", {}, ...items) : element("p", { class: "note" }, "nothing"));
    };
    if (!run.classes.takenFor) return null;
    return element("section", { class: "confused" }, list("Taken for", run.classes.takenFor[index]), list("Taken for it", run.classes.mistaken[index]));
  }

  function pictures(run, index) {
    const found = run.images(), images = found.classes[index];
    if (!images) return null;
    const styles = [run.main, ...found.models.map((name) => run.members.find((model) => model.name === name))];
    const figures = images.map(([jpeg, file, truth, confidence, predictions]) => {
      // With one member the ensemble is that member.
      const answers = run.members.length > 1 ? predictions : predictions.slice(0, 1);
      const items = answers.map((guess, place) => element("li", { class: guess === index ? "right" : null },
        swatch(styles[place]), "\u00a0", guess === index ? "right" : run.classes.names[guess], place === 0 ? ` ${percent(confidence, 0)} %` : ""));
      return element("figure", { title: file },
        element("img", { src: "data:image/jpeg;base64," + jpeg, alt: file, loading: "lazy", width: 96, height: 96 }),
        element("figcaption", {}, `truth ${percent(truth, 0)} % · ${file.split("/").pop()}`), element("ul", {}, ...items));
    });
    return block(`Worst ${run.split} images`, element("div", { class: "pictures" }, ...figures));
  }

  // --- what each member looks at

  const FOR = [213, 94, 0], AGAINST = [0, 114, 178];

  // The image in grey, and over it what each part adds: orange for, blue against, clear where nothing.
  function drawMap(canvas, image, packed, cells) {
    const context = canvas.getContext("2d");
    const { width, height } = canvas;
    context.drawImage(image, 0, 0, width, height);
    context.globalCompositeOperation = "saturation";
    context.fillStyle = "#808080";
    context.fillRect(0, 0, width, height);
    context.globalCompositeOperation = "source-over";
    const values = Int8Array.from(atob(packed), (letter) => letter.charCodeAt(0));
    const heat = new ImageData(cells, cells);
    values.forEach((value, place) => {
      heat.data.set(value > 0 ? FOR : AGAINST, 4 * place);
      heat.data[4 * place + 3] = Math.round(1.5 * Math.abs(value));
    });
    const small = document.createElement("canvas");
    small.width = small.height = cells;
    small.getContext("2d").putImageData(heat, 0, 0);
    context.imageSmoothingEnabled = true;
    context.drawImage(small, 0, 0, width, height);
  }

  function mapsTable(run, places) {
    const { attribution } = run.data, { models } = attribution;
    // A member stands beside what it was before.
    const members = models.filter((model) => model.kind === "member");
    const backbones = [...new Set(models.map((model) => model.backbone))];
    const order = backbones.flatMap((name) => [
      ...models.filter((model) => model.kind === "zero_shot" && model.name === name), ...members.filter((model) => model.backbone === name)]);
    const head = element("tr", {}, element("th", { scope: "col" }, "image"), element("th", { scope: "col" }),
      ...order.map((model) => element("th", { scope: "col" }, ...named(model, model.label))));
    const rows = places.map((place) => {
      const index = attribution.labels[place];
      const picture = element("img", { src: "data:image/jpeg;base64," + attribution.images[place], alt: attribution.files[place], title: attribution.files[place], width: 96, height: 96 });
      const cells = order.map((model) => {
        const canvas = element("canvas", { width: 192, height: 192, role: "img", "aria-label": `map of ${model.label}` });
        const paint = () => drawMap(canvas, picture, model.maps[place], model.cells);
        if (picture.complete && picture.naturalWidth) paint();
        else picture.addEventListener("load", paint);
        return element("td", {}, canvas, element("small", {}, percent(model.truth[place]) + " %"));
      });
      const link = element("a", { href: `#${run.key}-class-${index}` }, run.classes.names[index]);
      return element("tr", {}, element("th", { scope: "row" }, link, element("br"), attribution.worst[place] ? "one of its worst" : "drawn at random"), element("td", {}, picture), ...cells);
    });
    return element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows));
  }

  function mapsOfClass(run, index) {
    if (!run.data.attribution) return null;
    const places = run.data.attribution.labels.flatMap((label, place) => (label === index ? [place] : []));
    if (!places.length) return null;
    return block("What each member looks at", element("div", { class: "scroll maps" }, mapsTable(run, places)));
  }

  function showMaps() {
    for (const root of document.querySelectorAll("section > .maps[data-run]")) {
      const run = RUNS[root.dataset.run];
      idle(() => root.replaceChildren(mapsTable(run, run.data.attribution.labels.map((_, place) => place))));
    }
  }

  // --- where we are

  const explorers = {};
  const scatters = [];

  function showRun(key) {
    for (const article of document.querySelectorAll("article.run")) article.hidden = article.id !== key;
    for (const link of document.querySelectorAll("nav.runs a")) {
      if (link.hash === "#" + key) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    if (explorers[key] && !explorers[key].seen) {
      explorers[key].seen = true;
      explorers[key].first = -1;
      explorers[key].drawRows();
    }
    startPainting.again?.();
  }

  function route() {
    const [, key, index] = /^#(r\d+)(?:-class-(\d+))?/.exec(location.hash) || [];
    if (!(key in RUNS)) return;
    showRun(key);
    if (index === undefined || Number(index) >= RUNS[key].size) {
      if (drawer.index !== null) closeDrawer();
    } else {
      showClass(RUNS[key], Number(index));
    }
  }

  function followSections() {
    const links = [...document.querySelectorAll("nav.sections a")];
    const seen = new IntersectionObserver((entries) => {
      for (const entry of entries) {
        if (!entry.isIntersecting) continue;
        for (const link of links) {
          if (link.hash === "#" + entry.target.id) {
            link.setAttribute("aria-current", "true");
            link.parentElement.scrollTo({ left: link.offsetLeft - 60 });
          } else if (link.hash.split("-")[0] === "#" + entry.target.id.split("-")[0]) link.removeAttribute("aria-current");
        }
      }
    }, { rootMargin: "-15% 0px -80% 0px" });
    for (const section of document.querySelectorAll("article.run > section[id]")) seen.observe(section);
  }

  // --- start

  for (const root of document.querySelectorAll("[data-scatter]")) {
    scatters.push(new Scatter(root, RUNS[root.dataset.run]));
  }
  for (const root of document.querySelectorAll(".explorer")) {
    const run = RUNS[root.dataset.run];
    explorers[run.key] = new Explorer(root, run, scatters.find((scatter) => root.contains(scatter.root)));
  }
  showRun(Object.keys(RUNS)[0]);
  route();
  followSections();
  window.addEventListener("hashchange", route);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") closeDrawer();
  });
  media("(prefers-color-scheme: dark)").addEventListener("change", repaint);
  window.addEventListener("beforeprint", () => {
    if (window.Plotly) paintWaiting(visible);
    repaint();
  });
  window.addEventListener("afterprint", repaint);
  prepareCharts();
  showMaps();
  loadLibrary().then(startPainting, (error) => {
    for (const { plot } of waiting) {
      plot.classList.remove("waiting");
      plot.classList.add("failed");
    }
    console.warn("charts are not drawn: " + error.message);
  });
})();
