// The chart of a balance: figures come as JSON from data-chart, again and again while somebody looks.
"use strict";

(() => {
  const DAY = 86400;

  function colour(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  }

  function options(element, width) {
    const ink = colour("--faint");
    const line = colour("--line");
    const axis = { stroke: ink, grid: { stroke: line, width: 1 }, ticks: { stroke: line, width: 1 } };
    const whole = (_chart, value) => (value === null ? "–" : Math.round(value).toLocaleString());
    const series = (label, name, more) => ({ label, stroke: colour(name), width: 2, value: whole, points: { show: false }, ...more });
    return {
      width,
      height: 260,
      axes: [axis, { ...axis, size: 80, values: (_chart, values) => values.map((value) => value.toLocaleString()) }],
      scales: { y: { range: (_chart, _low, high) => [0, Math.max(1, high * 1.05)] } },
      series: [
        {},
        // A balance stays as it is until something changes it.
        series(element.dataset.available, "--bar", { paths: uPlot.paths.stepped({ align: 1 }), fill: colour("--bar-ground") }),
        series(element.dataset.frozen, "--bar-held", { paths: uPlot.paths.stepped({ align: 1 }) }),
        series(element.dataset.coming, "--faint", { dash: [6, 6] }),
      ],
    };
  }

  function show(element) {
    let chart = null;
    let data = null;
    const draw = () => {
      const width = Math.max(200, element.clientWidth);
      if (chart) chart.destroy();
      chart = new uPlot(options(element, width), data, element);
    };
    const load = async () => {
      if (!document.hidden || data === null) {
        try {
          const answer = await fetch(element.dataset.chart, { headers: { accept: "application/json" } });
          if (answer.ok && answer.headers.get("content-type")?.startsWith("application/json")) {
            const told = await answer.json();
            data = told.data;
            if (chart) chart.setData(data);
            else draw();
            element.dataset.points = String(data[0].length);
            element.dataset.last = String(told.available);
          }
        } catch {
          // The page says by itself that the connection is lost.
        }
      }
      if (element.isConnected) setTimeout(load, 1000 * Math.max(1, Number(element.dataset.refresh) || DAY));
    };
    let width = 0;
    new ResizeObserver(() => {
      if (chart && element.clientWidth !== width) {
        width = element.clientWidth;
        chart.setSize({ width: Math.max(200, width), height: 260 });
      }
    }).observe(element);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => data && draw());
    load();
  }

  const all = () => document.querySelectorAll("[data-chart]").forEach(show);
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", all);
  else all();
})();
