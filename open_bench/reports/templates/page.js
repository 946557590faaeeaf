"use strict";
(async () => {
  const all = (selector, from = document) => [...from.querySelectorAll(selector)];
  const root = document.documentElement;
  const packed = Uint8Array.from(atob(document.getElementById("data").textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const data = JSON.parse(await new Response(stream).text());
  Bokeh.set_log_level("warn");

  // --- light and dark ---
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const themeButton = document.getElementById("theme");
  const retheme = () => {
    root.dataset.drawn = isDark() ? "dark" : "light";
    themeButton.textContent = isDark() ? "Light" : "Dark";
    themeButton.setAttribute("aria-pressed", String(isDark()));
    for (const figure of drawn.keys()) later(figure);
  };
  themeButton.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    retheme();
  });
  system.addEventListener("change", retheme);

  // --- which lines are shown: those that no button and no filter hides ---
  const groups = new Map();
  const group = (id) => {
    if (!groups.has(id)) groups.set(id, { off: new Set(), filtered: new Set() });
    return groups.get(id);
  };
  const shown = (id, place) => !group(id).off.has(place) && !group(id).filtered.has(place);
  const refresh = (id) => {
    for (const [figure, { chart, renderers }] of drawn) {
      if (chart.group !== id) continue;
      if (chart.kind !== "lines") later(figure);
      else for (const [place, several] of renderers) for (const one of several) one.visible = shown(id, place);
    }
  };
  document.addEventListener("click", (event) => {
    const button = event.target.closest(".legend button");
    if (!button) return;
    const { in: id, of } = button.dataset;
    const off = group(id).off;
    if (!off.delete(Number(of))) off.add(Number(of));
    const pressed = String(!off.has(Number(of)));
    for (const twin of all(`.legend button[data-of="${of}"]`)) {
      if (twin.dataset.in === id) twin.setAttribute("aria-pressed", pressed);
    }
    refresh(id);
  });

  // --- charts: drawn one by one when their part of the page is open ---
  const drawn = new Map();
  const waiting = new Set();
  let busy = false;
  const later = (figure) => {
    waiting.add(figure);
    if (!busy) {
      busy = true;
      setTimeout(drawAll);
    }
  };
  const drawAll = async () => {
    for (const figure of waiting) {
      waiting.delete(figure);
      await draw(figure);
      await new Promise((resolve) => setTimeout(resolve));
    }
    busy = false;
    root.dataset.ready = "true";
  };
  const number = (value) => (value === null ? NaN : value);
  const color = (entry) => (isDark() ? entry.dark : entry.light);
  const clipped = (text) => (text.length > 22 ? `${text.slice(0, 21)}…` : text);

  const draw = async (figure) => {
    const chart = data.charts[Number(figure.dataset.chart)];
    const entries = data.legends[chart.group];
    const made = { lines, intervals, points }[chart.kind](chart, entries);
    const caption = document.createElement("figcaption");
    caption.textContent = chart.title;
    const place = document.createElement("div");
    const words = chart.levels && chart.levels.length ? document.createElement("p") : "";
    if (words) words.textContent = chart.levels.map(([name], i) => `${["dashed", "dotted"][i]}: ${name}`).join(", ");
    figure.setAttribute("aria-label", `${chart.title}. Arrow keys move, plus and minus zoom, 0 resets.`);
    figure.setAttribute("role", "group");
    if (drawn.has(figure)) drawn.get(figure).view.remove();
    figure.replaceChildren(caption, place, words);
    const view = await Bokeh.Plotting.show(made.plot, place);
    drawn.set(figure, { ...made, chart, view });
  };

  const newPlot = (chart, height, options = {}) => {
    const range = () => new Bokeh.DataRange1d({ only_visible: true });
    const plot = Bokeh.Plotting.figure({
      height, sizing_mode: "stretch_width", tools: "pan,box_zoom,wheel_zoom,reset,save", toolbar_location: "above",
      x_range: range(), y_range: range(), x_axis_label: chart.x, y_axis_label: chart.y || null,
      background_fill_color: null, border_fill_color: null, outline_line_color: null, ...options,
    });
    plot.toolbar.logo = null;
    plot.toolbar.autohide = false;
    const coarse = matchMedia("(pointer: coarse)").matches; // a finger scrolls the page
    plot.toolbar.active_drag = coarse ? null : plot.toolbar.tools.find((tool) => tool.type === "BoxZoomTool");
    const [fore, soft] = isDark() ? ["#e8eaed", "#353b45"] : ["#1b1f24", "#e1e5ea"];
    for (const axis of [...plot.xaxes, ...plot.yaxes]) {
      Object.assign(axis, {
        axis_label_text_color: fore, major_label_text_color: fore, axis_line_color: fore, major_tick_line_color: fore,
        minor_tick_line_color: null, axis_label_text_font_style: "normal", axis_label_text_font_size: "12px",
      });
    }
    for (const grid of [...plot.xgrids, ...plot.ygrids]) grid.grid_line_color = soft;
    return plot;
  };
  const hover = (plot, renderers, tooltips) =>
    plot.add_tools(new Bokeh.HoverTool({ renderers, tooltips, line_policy: "nearest", point_policy: "snap_to_data" }));
  const compact = (axis) => {
    axis.formatter = new Bokeh.NumeralTickFormatter({ format: "0.[0]a" });
  };
  const labeled = (axis, names) => {
    axis.ticker = new Bokeh.FixedTicker({ ticks: names.map((_, i) => i) });
    axis.major_label_overrides = new Map(names.map((name, i) => [i, clipped(name)]));
  };

  const lines = (chart, entries) => {
    const plot = newPlot(chart, 290, chart.log_y ? { y_axis_type: "log" } : {});
    const renderers = new Map();
    const hovered = [];
    const add = (place, one) => {
      renderers.set(place, [...(renderers.get(place) || []), one]);
      one.visible = shown(chart.group, place);
      return one;
    };
    for (const { of, x: grid, v, low, high } of chart.series) {
      const entry = entries[of];
      const [x, value] = [chart.grids[grid], v.map(number)];
      const ends = low ? [low.map(number), high.map(number)] : [value, value];
      const columns = { x, value, low: ends[0], high: ends[1] };
      const source = new Bokeh.ColumnDataSource({ data: columns });
      const [line_color, fill_color] = [color(entry), color(entry)];
      const field = (name) => ({ field: name });
      if (low && chart.bars) {
        add(of, plot.segment({ x0: field("x"), y0: field("low"), x1: field("x"), y1: field("high"), source, line_color, line_width: 2, line_alpha: 0.55 }));
      } else if (low) {
        add(of, plot.varea({ x: field("x"), y1: field("low"), y2: field("high"), source, fill_color, fill_alpha: 0.15 }));
      }
      if (!chart.apart) {
        hovered.push(add(of, plot.line({ x: field("x"), y: field("value"), source, line_color, line_dash: entry.dash, line_width: 2, name: entry.short })));
      }
      const step = chart.bars ? 1 : Math.max(1, Math.floor(x.length / 8));
      const some = (values) => values.filter((_, i) => i % step === 0);
      const marks = new Bokeh.ColumnDataSource({ data: Object.fromEntries(Object.entries(columns).map(([key, values]) => [key, some(values)])) });
      const marked = add(of, plot.scatter({ x: field("x"), y: field("value"), source: marks, marker: entry.marker, size: 6, line_color, fill_color, name: entry.short }));
      if (chart.apart) hovered.push(marked);
    }
    const ends = [0, -1].map((at) => chart.grids.map((grid) => grid.at(at)));
    const span = [Math.min(...ends[0]), Math.max(...ends[1])];
    chart.levels.forEach(([name, y], i) => {
      const line_color = isDark() ? "#b8c0cc" : "#555555";
      plot.line({ x: span, y: [y, y], line_color, line_dash: i ? [2, 3] : [7, 4], line_width: 1.4, name });
    });
    if (chart.ticks.length) labeled(plot.xaxes[0], chart.ticks);
    else compact(plot.xaxes[0]);
    if (chart.ticks.length > 3) plot.xaxes[0].major_label_orientation = 0.6;
    if (chart.from_zero) plot.x_range.start = 0;
    if (chart.fraction) plot.y_range = new Bokeh.Range1d({ start: -0.02, end: 1.02 });
    const range = chart.series.some(({ low }) => low) ? [["95 %", "@low to @high"]] : [];
    hover(plot, hovered, [["", "$name"], [chart.y, "@value"], ...range, [chart.x, chart.ticks.length ? "$x" : "@x{0,0.[00]}"]]);
    return { plot, renderers };
  };

  const intervals = (chart, entries) => {
    const rows = chart.rows.filter(([of]) => shown(chart.group, of));
    const names = rows.map(([of]) => entries[of].short);
    const plot = newPlot(chart, 96 + 22 * rows.length, { y_range: new Bokeh.Range1d({ start: rows.length - 0.4, end: -0.6 }) });
    labeled(plot.yaxes[0], names);
    plot.ygrids[0].grid_line_color = null;
    const column = (at) => rows.map((row) => number(row[at]));
    const colors = rows.map(([of]) => color(entries[of]));
    const columns = { y: rows.map((_, i) => i), value: column(1), low: column(2), high: column(3), name: names, color: colors, range: rows.map(([, , low, high]) => (low === null ? "none" : `${low} to ${high}`)), marker: rows.map(([of]) => entries[of].marker) };
    const source = new Bokeh.ColumnDataSource({ data: columns });
    const field = (name) => ({ field: name });
    if (chart.level !== null) {
      plot.add_layout(new Bokeh.Span({ location: chart.level, dimension: "height", line_dash: [5, 4], line_color: isDark() ? "#b8c0cc" : "#555555" }));
    }
    plot.hbar({ y: field("y"), left: field("low"), right: field("high"), height: 0.55, source, fill_color: field("color"), line_color: null, fill_alpha: 0.35 });
    const marks = plot.scatter({ x: field("value"), y: field("y"), source, marker: field("marker"), size: 9, fill_color: field("color"), line_color: field("color") });
    hover(plot, [marks], [["", "@name"], [chart.title, "@value"], ["95 %", "@range"]]);
    return { plot, renderers: new Map() };
  };

  const points = (chart, entries) => {
    const plot = newPlot(chart, 330);
    const hovered = [];
    for (const [of, [x, x_low, x_high], [y, y_low, y_high]] of chart.rows) {
      if (!shown(chart.group, of)) continue;
      const [line_color, fill_color] = [color(entries[of]), color(entries[of])];
      plot.segment({ x0: [x_low, x].map(number), y0: [y, y_low].map(number), x1: [x_high, x].map(number), y1: [y, y_high].map(number), line_color, line_alpha: 0.6 });
      hovered.push(plot.scatter({ x: [x], y: [y], marker: entries[of].marker, size: 11, line_color, fill_color, name: entries[of].short }));
    }
    hover(plot, hovered, [["", "$name"], [chart.x, "$data_x"], [chart.y, "$data_y"]]);
    return { plot, renderers: new Map() };
  };

  document.addEventListener("keydown", (event) => {
    const made = event.target.matches("figure") && drawn.get(event.target);
    if (!made) return;
    const { x_range: x, y_range: y } = made.plot;
    const move = (range, by) => {
      const amount = by * (range.end - range.start);
      range.setv({ start: range.start + amount, end: range.end + amount });
    };
    const zoom = (range, by) => {
      const [middle, half] = [(range.start + range.end) / 2, ((range.end - range.start) / 2) * by];
      range.setv({ start: middle - half, end: middle + half });
    };
    const acts = {
      ArrowLeft: () => move(x, -0.1), ArrowRight: () => move(x, 0.1), ArrowUp: () => move(y, 0.1),
      ArrowDown: () => move(y, -0.1), "+": () => zoom(x, 0.7), "-": () => zoom(x, 1 / 0.7), 0: () => later(event.target),
    };
    if (!acts[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    acts[event.key]();
  });

  // --- what is folded away is filled when it is opened ---
  const open = (part) => {
    if (part.dataset.panel && !part.dataset.filled) {
      part.dataset.filled = "true";
      const target = part.matches("details") ? part.lastElementChild : part;
      target.innerHTML = data.panels[part.dataset.panel];
      const section = part.closest("section[data-group]");
      if (section) filter(section);
    }
    for (const figure of all("figure[data-chart]", part)) if (!drawn.has(figure)) later(figure);
  };
  for (const part of all("details[data-panel]")) part.addEventListener("toggle", () => part.open && open(part));

  // --- tabs ---
  const select = (tab, focus) => {
    for (const other of all('[role="tab"]', tab.parentElement)) {
      const chosen = other === tab;
      other.setAttribute("aria-selected", String(chosen));
      other.tabIndex = chosen ? 0 : -1;
      const panel = document.getElementById(other.getAttribute("aria-controls"));
      panel.hidden = !chosen;
      if (chosen) open(panel);
    }
    if (focus) tab.focus();
  };
  for (const list of all('[role="tablist"]')) {
    const tabs = () => all('[role="tab"]', list).filter((tab) => !tab.hidden);
    list.addEventListener("click", (event) => event.target.matches('[role="tab"]') && select(event.target));
    list.addEventListener("keydown", (event) => {
      const here = tabs().indexOf(event.target);
      const to = { ArrowRight: here + 1, ArrowLeft: here - 1, Home: 0, End: tabs().length - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      select(tabs().at(to % tabs().length), true);
    });
  }

  // --- sorting: by the cell's number where it has one; what is empty stays last ---
  const key = (row, at) => {
    const cell = row.cells[at];
    return cell.dataset.k !== undefined ? Number(cell.dataset.k) : cell.textContent.trim();
  };
  document.addEventListener("click", (event) => {
    const heading = event.target.closest("thead th button")?.parentElement;
    if (!heading) return;
    const [at, body] = [heading.cellIndex, heading.closest("table").tBodies[0]];
    const rows = [...body.rows].map((row) => [key(row, at), row]);
    const numbers = rows.some(([value]) => typeof value === "number");
    const first = numbers && heading.dataset.first !== "low" ? "descending" : "ascending";
    const now = heading.getAttribute("aria-sort");
    const order = !now ? first : now === "ascending" ? "descending" : "ascending";
    for (const other of heading.parentElement.cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", order);
    const sign = order === "ascending" ? 1 : -1;
    const missing = (value) => value === "" || (numbers && typeof value !== "number");
    rows.sort(([a], [b]) => {
      if (missing(a) || missing(b)) return missing(a) - missing(b);
      return sign * (typeof a === "number" ? a - b : a < b ? -1 : a > b ? 1 : 0);
    });
    body.append(...rows.map(([, row]) => row));
  });

  // --- filters ---
  const matches = (text, wanted) => {
    const words = wanted.toLowerCase().split(",").map((word) => word.trim()).filter(Boolean);
    return !words.length || words.some((word) => text.toLowerCase().includes(word));
  };
  const filter = (section) => {
    const form = section.querySelector("form.filters");
    if (!form) return;
    const { optimizer, track, environment, returns } = form.elements;
    const tracks = new Map(all("tr[data-track]", section).map((row) => [row.dataset.optimizer, row.dataset.track]));
    const short = new Map(data.legends[section.dataset.group].map((entry) => [entry.name, entry.short]));
    const keeps = (name) => matches(`${name} ${short.get(name) || ""}`, optimizer.value) && (!track.value || tracks.get(name) === track.value);
    for (const row of all("tr[data-optimizer]", section)) row.hidden = !keeps(row.dataset.optimizer);
    const id = section.dataset.group;
    group(id).filtered = new Set(data.legends[id].flatMap((entry, i) => (keeps(entry.name) ? [] : [i])));
    for (const button of all(".legend button", section)) button.hidden = group(id).filtered.has(Number(button.dataset.of));
    const tabs = all('[role="tab"]', section);
    const wanted = tabs.map((tab) => matches(tab.dataset.name, environment.value));
    tabs.forEach((tab, i) => (tab.hidden = !wanted[i]));
    for (const cell of all("[data-env]", section)) cell.classList.toggle("away", !returns.checked || !wanted[Number(cell.dataset.env)]);
    const chosen = tabs.find((tab) => tab.getAttribute("aria-selected") === "true");
    if (!chosen || chosen.hidden) {
      const next = tabs.find((tab) => !tab.hidden);
      if (next) select(next);
    }
    refresh(id);
  };
  for (const form of all("form.filters")) {
    form.addEventListener("input", () => filter(form.closest("section")));
    form.addEventListener("submit", (event) => event.preventDefault());
    filter(form.closest("section"));
  }
  for (const list of all('[role="tablist"]')) {
    const first = list.querySelector('[role="tab"]');
    if (first && !list.querySelector('[aria-selected="true"]')) select(first);
  }
  retheme();
  for (const figure of all("figure[data-chart]")) if (!figure.closest("[hidden]") && !drawn.has(figure)) later(figure);
  if (!waiting.size) root.dataset.ready = "true";
})();
