// What the limits looked like: three plots over one span, asked for again every ten seconds.
"use strict";

(() => {
  const id = (name) => document.getElementById(name);
  const EVERY_MS = 10000;
  let span = 3600, limit = null, shown = false, timer = null, data = null;
  let plots = [];

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const seconds = (ms) => (ms < 1000 ? `${Math.round(ms)} ms` : ms < 100000 ? `${(ms / 1000).toFixed(1)} s` : `${Math.round(ms / 60000)} min`);

  function axes(values) {
    const font = `11px ${colour("--sans")}`;
    const grid = { stroke: colour("--hair"), width: 1 };
    const rest = { stroke: colour("--soft"), font, grid, ticks: { show: false } };
    const hour = (at) => new Date(at * 1000).toLocaleTimeString(undefined, { hour: "2-digit", minute: "2-digit", hour12: false });
    return [
      { ...rest, grid: { show: false }, size: 24, gap: 6, space: 64, values: (_, at) => at.map(hour) },
      { ...rest, size: 46, gap: 4, space: 26, values },
    ];
  }

  function plot(name, series, values, kind = {}) {
    const box = id(name);
    const made = new uPlot({
      width: box.clientWidth || 320, height: box.clientHeight || 120, padding: [8, 16, 0, 0],
      legend: { show: false }, cursor: { y: false, points: { size: 5 }, sync: { key: "history" }, drag: { x: false, y: false } },
      scales: { y: { range: (_, low, high) => [0, Math.max(high || 0, kind.least ?? 1) * 1.08] } },
      axes: axes(values), series: [{}, ...series],
      hooks: { setCursor: [(self) => tell(self.cursor.idx)] },
    }, [[], ...series.map(() => [])], box);
    return made;
  }

  function build() {
    for (const one of plots) one.destroy();
    const line = (stroke, more = {}) => ({ stroke: colour(stroke), width: 1.5, points: { show: false }, ...more });
    const whole = (_, at) => at.map((n) => (Number.isInteger(n) ? String(n) : ""));
    const stepped = uPlot.paths.stepped({ align: 1 });
    const bars = uPlot.paths.bars({ size: [0.7, 6] });
    plots = [
      plot("plot-flight", [
        line("--held", { paths: stepped, fill: colour("--held") + "26" }),
        line("--soft", { paths: stepped, width: 1, dash: [4, 3] }),
      ], whole, { least: 2 }),
      plot("plot-wait", [line("--soft", { width: 1 }), line("--cool")], (_, at) => at.map(seconds), { least: 1000 }),
      plot("plot-refusals", [line("--over", { paths: bars, fill: colour("--over"), width: 0 })], whole, { least: 2 }),
    ];
    fill();
  }

  /** Columns with a gap wherever nobody looked: the server was not there. */
  function columns(names) {
    const step = data.stepMs, rows = [[], ...names.map(() => [])];
    data.at.forEach((at, row) => {
      const before = data.at[row - 1];
      if (row && at - before > 1.5 * step) {
        rows[0].push((before + step) / 1000);
        names.forEach((_, column) => rows[column + 1].push(null));
      }
      rows[0].push(at / 1000);
      names.forEach((name, column) => rows[column + 1].push(name === "refusals" ? data[name][row] || null : data[name][row]));
    });
    return rows;
  }

  function fill() {
    if (!data || !plots.length) return;
    const to = (Date.now() + skew) / 1000, first = data.at.length ? data.at[0] / 1000 : to;
    const x = { min: Math.max(to - span, Math.min(first, to - span / 6)), max: to }; // a young server is seen closer
    const sets = [["inFlight", "capacity"], ["waitLongestMs", "waitMedianMs"], ["refusals"]];
    plots.forEach((one, at) => {
      one.batch(() => { one.setData(columns(sets[at]), false); one.setScale("x", x); });
    });
    tell(null);
  }

  /** The numbers at the cursor, or those of the whole span. */
  function tell(at) {
    if (!data) return;
    const bucket = at === null || at === undefined ? -1 : data.at.indexOf(Math.round(plots[0].data[0][at] * 1000));
    const most = (name) => Math.max(0, ...data[name]);
    const when = bucket < 0 ? "" : `${new Date(data.at[bucket]).toLocaleTimeString(undefined, { hour12: false })}: `;
    const pick = (name) => (bucket < 0 ? most(name) : data[name][bucket]);
    const capacity = bucket < 0 ? null : data.capacity[bucket];
    id("plot-flight-now").textContent = bucket < 0 ? `at most ${pick("inFlight")}` : `${when}${pick("inFlight")}${capacity === null ? "" : ` of ${capacity}`}, ${pick("waiting")} waiting`;
    id("plot-wait-now").textContent = bucket < 0 ? `longest ${seconds(pick("waitLongestMs"))}` : `${when}median ${seconds(pick("waitMedianMs"))}, longest ${seconds(pick("waitLongestMs"))}`;
    const refusals = bucket < 0 ? data.refusals.reduce((sum, one) => sum + one, 0) : pick("refusals");
    id("plot-refusals-now").textContent = `${when}${refusals}`;
  }

  async function load() {
    clearTimeout(timer);
    if (!shown || document.hidden) return;
    try {
      const { limits } = await (await ask("/history")).json();
      choose(limits);
      if (limit !== null) {
        const since = Math.round(Date.now() + skew - span * 1000);
        data = await (await ask(`/history?limit=${encodeURIComponent(limit)}&since=${since}`)).json();
        if (!plots.length) build();
        else fill();
      }
      id("history-note").textContent = limit === null ? "Nothing to plot yet." : "";
      timer = setTimeout(load, EVERY_MS);
    } catch (error) {
      id("history-note").textContent = error.status ? error.message : "";
      timer = setTimeout(load, error.status ? EVERY_MS * 6 : EVERY_MS);
    }
  }

  function choose(limits) {
    const box = id("history-limit");
    const ordered = [...limits.filter((name) => name.startsWith("provider:")), ...limits.filter((name) => !name.startsWith("provider:"))];
    if (ordered.join("\n") !== [...box.options].map((one) => one.value).join("\n")) {
      box.replaceChildren(...ordered.map((name) => new Option(name.replace(/^provider:/, ""), name)));
    }
    if (!ordered.includes(limit)) limit = ordered[0] ?? null;
    if (limit !== null) box.value = limit;
  }

  id("history-limit").addEventListener("change", (event) => { limit = event.target.value; load(); });
  for (const button of document.querySelectorAll("[data-span]")) {
    button.addEventListener("click", () => {
      span = Number(button.dataset.span);
      for (const one of document.querySelectorAll("[data-span]")) one.setAttribute("aria-pressed", String(one === button));
      load();
    });
  }
  document.addEventListener("interlock:page", ({ detail }) => {
    shown = detail.page === "fleet";
    if (detail.open) limit = detail.open;
  });
  let first = true;
  document.addEventListener("interlock:shown", () => { if (shown && first) { first = false; load(); } });
  document.addEventListener("interlock:page", () => { first = true; });
  document.addEventListener("visibilitychange", () => { if (!document.hidden) load(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { if (plots.length) build(); });
  new ResizeObserver(() => {
    for (const one of plots) {
      const box = one.root.parentElement;
      if (box.clientWidth) one.setSize({ width: box.clientWidth, height: box.clientHeight });
    }
  }).observe(id("history"));
})();
