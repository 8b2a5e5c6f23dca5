// The status page: asks /api/status again and again, and draws what has changed.
// Everything that came from outside enters the page as text, never as markup.
"use strict";

const ASK_EVERY_MS = 2000;
const CELLS_MAX = 96;
const HUES = 8;
const SVG = "http://www.w3.org/2000/svg";

const byId = (id) => document.getElementById(id);
const drawn = new Map(); // Section → what was drawn there last, so that nothing moves in vain.
const expanded = new Set();
let latest = null;

// --- making elements -------------------------------------------------------------------

function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key === "class") made.className = value;
    else if (key in made) made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

function shape(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function draw(id, facts, make) {
  const key = JSON.stringify(facts);
  if (drawn.get(id) === key) return;
  drawn.set(id, key);
  byId(id).replaceChildren(...make());
}

// --- numbers for people ------------------------------------------------------------------

function scaled(number, base, units) {
  let at = 0;
  while (number >= base && at < units.length - 1) {
    number /= base;
    at += 1;
  }
  const digits = at === 0 || number >= 100 ? 0 : number >= 10 ? 1 : 2;
  // Through a number again, because 7.50 says no more than 7.5.
  return Number(number.toFixed(at === 0 && number > 0 && number < 10 ? 1 : digits)) + units[at];
}

const count = (number) => number === null ? "–" : scaled(number, 1000, ["", " k", " M", " G"]);
const bytes = (number) =>
  number === null ? "–" : scaled(number, 1024, [" B", " KiB", " MiB", " GiB", " TiB"]);
const exact = (number) => number === null ? "–" : number.toLocaleString("en");
const millis = (number) => number === null ? "–" : `≤ ${scaled(number, 1e9, [""])} ms`;

function duration(ms) {
  const seconds = Math.floor(ms / 1000);
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ${Math.floor(seconds / 60) % 60} min`;
  return `${Math.floor(seconds / 86400)} d ${Math.floor(seconds / 3600) % 24} h`;
}

const plural = (number, noun) => `${exact(number)} ${noun}${number === 1 ? "" : "s"}`;

// --- sections ----------------------------------------------------------------------------

function drawHead(status) {
  const states = { ok: "healthy", degraded: "degraded", unavailable: "unavailable" };
  const pill = byId("state");
  pill.className = `pill ${status.state}`;
  pill.textContent = states[status.state];
  byId("identity").textContent =
    `cluster ${status.cluster_id ?? "not formed yet"} · seen by broker ${status.node} · ` +
    `version ${status.version}`;
  document.title = status.state === "ok" ? "logd" : `logd: ${states[status.state]}`;
  const box = byId("problems");
  box.hidden = status.problems.length === 0;
  box.className = status.state;
  draw("problems", status.problems, () => [
    element("ul", {}, ...status.problems.map((text) => element("li", {}, text))),
  ]);
}

function tile(name, value, unit, note = "", tone = "") {
  return element("div", { class: "tile" },
    element("div", { class: "name" }, name),
    element("div", { class: "value" }, value, unit ? element("small", {}, ` ${unit}`) : null),
    element("div", { class: `note ${tone}` }, note || "\u00a0"));
}

function drawTiles(status) {
  const alive = status.brokers.filter((broker) => broker.alive).length;
  const slowest = (name) => {
    const known = status.brokers.map((broker) => broker.report?.[name] ?? null)
      .filter((found) => found !== null);
    return known.length ? Math.max(...known) : null;
  };
  const lag = Math.max(0, ...status.topics.map((topic) => topic.follower_lag));
  const readerLag = Math.max(0, ...status.topics.map((topic) => topic.reader_lag));
  const readers = status.topics.reduce((sum, topic) => sum + topic.readers, 0);
  const lacking = [
    status.offline ? `${status.offline} without a leader` : "",
    status.under_replicated ? `${status.under_replicated} under-replicated` : "",
  ].filter(Boolean).join(", ");
  const facts = [
    ["Records in", count(status.rates.records_in), "/s", `${bytes(status.rates.bytes_in)}/s`],
    ["Records out", count(status.rates.records_out), "/s", `${bytes(status.rates.bytes_out)}/s`],
    ["Commit, p99", millis(slowest("commit_p99_ms")), "",
      `sync ${millis(slowest("sync_p99_ms"))}`],
    ["Brokers", `${alive}`, `of ${status.brokers.length}`,
      alive === status.brokers.length ? "all alive" : "some are missing",
      alive === status.brokers.length ? "" : "red"],
    ["Partitions", exact(status.partitions), `in ${plural(status.topics.length, "topic")}`,
      lacking || "all in sync", status.offline ? "red" : lacking ? "amber" : ""],
    ["Lag of followers", count(lag), "", "records at most"],
    ["Lag of readers", count(readerLag), "", plural(readers, "subscription")],
  ];
  draw("tiles", facts, () => facts.map((fact) => tile(...fact)));
}

function niceCeiling(number) {
  if (number <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(number));
  return [1, 1.5, 2, 3, 4, 5, 7.5, 10].map((step) => step * power).find((step) => step >= number);
}

function curve(samples, slots, top, width, height) {
  const x = (at) => width * (1 - (samples.length - 1 - at) / (slots - 1));
  const y = (value) => height * (1 - value / top);
  return samples.map((value, at) => `${x(at).toFixed(1)},${y(value).toFixed(1)}`);
}

function drawChart(status) {
  const history = status.history;
  draw("legend", [status.rates], () => [["in", "records_in"], ["out", "records_out"]].map(
    ([way, name]) => element("span", {},
      element("span", { class: `key ${way}` }), `${way} `,
      element("b", {}, `${count(status.rates[name])}/s`))));
  draw("chart", history, () => {
    const [width, height, slots] = [1000, 120, 60];
    const top = niceCeiling(Math.max(1, ...history.records_in, ...history.records_out));
    const chart = shape("svg", {
      viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", role: "img",
      "aria-label": `records per second over the last two minutes, up to ${count(top)}`,
    });
    for (const share of [0, 0.5, 1]) {
      const y = height * (1 - share);
      chart.append(shape("line", { class: "grid", x1: 0, x2: width, y1: y, y2: y }));
    }
    for (const way of ["out", "in"]) {
      const points = curve(history[`records_${way}`], slots, top, width, height);
      if (points.length < 2) continue;
      const first = points[0].split(",")[0];
      chart.append(
        shape("polygon", {
          class: `area ${way}`, points: `${first},${height} ${points.join(" ")} ${width},${height}`,
        }),
        shape("polyline", { class: `curve ${way}`, points: points.join(" ") }));
    }
    return [labelled(chart, top, history.interval_s * slots)];
  });
}

function labelled(chart, top, seconds) {
  // Labels stand beside the drawing, which is stretched to the page's width.
  const scale = element("div", { class: "scale" },
    element("span", {}, `${count(top)}/s`), element("span", {}, `${count(top / 2)}/s`),
    element("span", {}, "0"));
  const times = element("div", { class: "times" },
    element("span", {}, `${Math.round(seconds / 60)} min ago`), element("span", {}, "now"));
  return element("div", { class: "chart" }, scale, chart, times);
}

function sparkline(samples) {
  const [width, height] = [300, 34];
  const top = Math.max(1, ...samples);
  const points = curve(samples, 60, top, width, height - 3).map((point) => {
    const [x, y] = point.split(",");
    return `${x},${Number(y) + 2}`;
  });
  const spark = shape("svg", {
    class: "spark", viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none",
    "aria-hidden": "true",
  });
  if (points.length > 1) {
    const first = points[0].split(",")[0];
    spark.append(
      shape("polygon", {
        class: "area in", points: `${first},${height} ${points.join(" ")} ${width},${height}`,
      }),
      shape("polyline", { class: "curve in", points: points.join(" ") }));
  }
  return spark;
}

function brokerCard(broker) {
  const report = broker.report;
  const dot = !broker.alive ? "dead" : report?.is_stopping ? "stopping" : "";
  const head = element("div", { class: "card-head" },
    element("span", { class: `dot ${dot}` }),
    element("span", { class: "name" }, `Broker ${broker.id}`),
    element("span", { class: "address" }, broker.address),
    broker.is_controller ? element("span", { class: "badge" }, "controller") : null,
    broker.is_draining ? element("span", { class: "badge" }, "draining") : null,
    broker.rack ? element("span", { class: "badge" }, broker.rack) : null);
  const card = element("article", { class: `card ${broker.alive ? "" : "dead"}` }, head);
  card.dataset.broker = broker.id;
  if (!broker.alive) {
    card.append(element("p", { class: "gone" },
      `Not alive. It holds ${plural(broker.replicas, "replica")}.`));
    return card;
  }
  if (report === null) {
    card.append(element("p", { class: "empty" }, "Alive, but it does not report."));
    return card;
  }
  const facts = [
    ["leads", `${broker.leaders} of ${broker.replicas}`],
    ["in", `${count(broker.rates?.records_in ?? 0)}/s`],
    ["out", `${count(broker.rates?.records_out ?? 0)}/s`],
    ["clients", exact(report.connections)],
    ["commit p99", millis(report.commit_p99_ms)],
    ["sync p99", millis(report.sync_p99_ms)],
    ["memory", bytes(report.memory_bytes)],
    ["disk free", bytes(report.disk_free_bytes), report.is_disk_full ? "red" : ""],
    ["queued", bytes(report.queued_bytes)],
    ["tailed", exact(report.subscriptions)],
    ["version", broker.version],
    ["up", duration(report.uptime_ms)],
  ];
  card.append(sparkline(broker.history), element("dl", { class: "facts" },
    ...facts.map(([name, value, tone]) => element("div", {},
      element("dt", {}, name), element("dd", { class: tone ?? "" }, value)))));
  return card;
}

function cellOf(partition, topic) {
  const leader = partition.leader === null ? "!" : String(partition.leader);
  const hue = partition.leader === null ? 0 : (partition.leader - 1) % HUES;
  const lag = partition.follower_lag === null ? "" : `, followers lag ${exact(partition.follower_lag)}`;
  return element("span", {
    class: `cell hue${hue} ${partition.state}`,
    title: `${topic}/${partition.partition}: ` +
      (partition.leader === null ? "no leader" : `led by broker ${leader}`) +
      `, replicas ${partition.replicas.join(", ")}${lag}`,
  }, leader);
}

function replicasOf(partition) {
  const parts = partition.replicas.flatMap((node, at) => {
    const lacks = partition.log_end !== null && !partition.in_sync.includes(node);
    return [at ? ", " : "", element("span", { class: lacks ? "lack" : "" }, String(node))];
  });
  return element("td", {}, ...parts);
}

function partitionTable(topic) {
  const names = ["partition", "state", "leader", "term", "replicas", "start", "commit", "size",
    "follower lag", "readers", "reader lag"];
  const words = { ok: "in sync", under_replicated: "under-replicated", offline: "no leader" };
  const number = (value) => element("td", { class: "number" }, value);
  return element("table", {},
    element("thead", {}, element("tr", {}, ...names.map((name) => element("th",
      { class: ["partition", "state", "replicas"].includes(name) ? "" : "number" }, name)))),
    element("tbody", {}, ...topic.partitions.map((row) => element("tr", {},
      element("td", {}, String(row.partition)),
      element("td", {}, element("span", { class: `tag ${row.state}` }, words[row.state])),
      number(row.leader === null ? "–" : String(row.leader)), number(String(row.term)),
      replicasOf(row), number(exact(row.log_start)), number(exact(row.commit)),
      number(bytes(row.log_bytes)), number(exact(row.follower_lag)), number(exact(row.readers)),
      number(exact(row.reader_lag))))));
}

function topicRows(topic) {
  const isOpen = expanded.has(topic.name);
  const cells = topic.partitions.slice(0, CELLS_MAX).map((row) => cellOf(row, topic.name));
  const rest = topic.partition_count - cells.length;
  if (rest > 0) cells.push(element("span", { class: "cell rest" }, `+${exact(rest)}`));
  const number = (value) => element("td", { class: "number" }, value);
  const row = element("tr", { class: "topic" },
    element("td", {}, element("button", {
      class: "toggle", type: "button", "aria-expanded": String(isOpen),
    }, topic.name)),
    element("td", { class: "wide" }, element("div", { class: "cells" }, ...cells)),
    number(`${count(topic.rates.records_in)}/s`), number(`${count(topic.rates.records_out)}/s`),
    number(bytes(topic.log_bytes)), number(count(topic.follower_lag)),
    number(topic.readers ? count(topic.reader_lag) : "–"));
  row.addEventListener("click", () => {
    if (!expanded.delete(topic.name)) expanded.add(topic.name);
    drawTopics(latest);
  });
  if (!isOpen) return [row];
  return [row, element("tr", { class: "detail" },
    element("td", { colSpan: 7 }, partitionTable(topic)))];
}

function drawTopics(status) {
  const wanted = byId("filter").value.trim().toLowerCase();
  const topics = status.topics.filter((topic) => topic.name.toLowerCase().includes(wanted));
  draw("topics", [topics, [...expanded], status.partitions_left_out], () => {
    if (!status.topics.length) {
      return [element("p", { class: "empty" }, "No topics yet: logd topic create NAME")];
    }
    if (!topics.length) return [element("p", { class: "empty" }, "No topic has that in its name.")];
    const names = ["topic", "partitions, by leader", "in", "out", "size", "follower lag", "reader lag"];
    const table = element("table", {},
      element("thead", {}, element("tr", {}, ...names.map((name, at) =>
        element("th", { class: at > 1 ? "number" : "" }, name)))),
      element("tbody", {}, ...topics.flatMap(topicRows)));
    const left = status.partitions_left_out;
    return left
      ? [table, element("p", { class: "empty" }, `${plural(left, "partition")} that are well are not shown.`)]
      : [table];
  });
}

function moveRow(move, now) {
  const has = move.copied === null ? 0 : move.copied;
  const bar = element("div", { class: "bar", title: `${(has * 100).toFixed(1)} % copied` },
    element("div", {}));
  bar.firstChild.style.width = `${has * 100}%`;
  const size = move.log_bytes;
  const number = (value) => element("td", { class: "number" }, value);
  return element("tr", {},
    element("td", {}, move.partition),
    element("td", { class: "brokers" }, `${move.before.join(", ")} \u2192 ${move.target.join(", ")}`),
    element("td", { class: "wide" }, bar),
    number(move.copied === null ? "–" : `${Math.floor(has * 100)} %`),
    number(size === null ? "–" : `${bytes(size * has)} of ${bytes(size)}`),
    number(duration(now - move.begun_ms)),
    element("td", {}, move.is_cancelled ? "cancelled: goes back" : move.reason));
}

function drawMoves(status) {
  const plan = status.plan;
  byId("moves-section").hidden = plan === null && status.moves.length === 0;
  draw("plan", plan, () => plan === null ? [] : [
    `${plan.purpose}: ${exact(plan.done)} of ${plural(plan.move_count, "move")} done` +
    (plan.state === "cancelling" ? ", being cancelled" : "") +
    (plan.skipped ? `, ${exact(plan.skipped)} skipped` : "") +
    `, at most ${bytes(plan.throttle_bytes_per_s)}/s`,
  ]);
  draw("moves", [status.moves, status.now_ms], () => {
    if (!status.moves.length) return [element("p", { class: "empty" }, "None is under way now.")];
    const names = ["partition", "brokers", "copied", "", "size", "for", "why"];
    return [element("table", {},
      element("thead", {}, element("tr", {}, ...names.map((name, at) =>
        element("th", { class: at > 2 && at < 6 ? "number" : "" }, name)))),
      element("tbody", {}, ...status.moves.map((move) => moveRow(move, status.now_ms))))];
  });
}

function drawEvents(status) {
  draw("events", status.events, () => status.events.length
    ? status.events.map((event) => element("li", { class: event.level },
      element("time", { dateTime: new Date(event.at_ms).toISOString() },
        new Date(event.at_ms).toLocaleTimeString("en-GB")),
      element("span", { class: "who" }, `broker ${event.node}`),
      element("span", { class: "what" }, event.text)))
    : [element("li", {}, element("p", { class: "empty" }, "Nothing has happened yet."))]);
}

function drawAll(status) {
  latest = status;
  drawHead(status);
  drawTiles(status);
  drawChart(status);
  draw("brokers", status.brokers, () => status.brokers.map(brokerCard));
  drawMoves(status);
  drawTopics(status);
  drawEvents(status);
}

// --- asking ------------------------------------------------------------------------------

async function ask() {
  const live = byId("live");
  try {
    const answer = await fetch("/api/status", { signal: AbortSignal.timeout(8000) });
    if (!answer.ok) throw new Error(`HTTP ${answer.status}`);
    drawAll(await answer.json());
    live.className = "";
    live.textContent = `live · ${new Date().toLocaleTimeString("en-GB")}`;
  } catch (error) {
    live.className = "lost";
    live.textContent = "this broker does not answer";
    console.warn("no status:", error);
  }
}

async function askAgainAndAgain() {
  for (;;) {
    if (!document.hidden) await ask();
    await new Promise((resolve) => setTimeout(resolve, ASK_EVERY_MS));
  }
}

byId("filter").addEventListener("input", () => { if (latest) drawTopics(latest); });
document.addEventListener("visibilitychange", () => { if (!document.hidden) ask(); });
askAgainAndAgain();
