// The status page: streams, gateways, and what was refused or has ended lately.

import { bytes, count, day, duration, moment, plural, rate, shortUid, side, UNKNOWN } from "./format.js";
import { byId, el, say, set, show, time } from "./dom.js";
import { Events, getJson, LinkState } from "./net.js";
import { SmallPlot } from "./plot.js";
import { Badge, rank, STATES } from "./states.js";
import { DataTable, textColumn } from "./table.js";

const FIRST_PAGE = 100;
const LATER_PAGES = 500;
const ROWS = 50;
const REORDER = 5000;
const KEPT = 600;
const SHORT_LIST = 10;

const streams = new Map();
const histories = new Map();
const asked = new Set();
let skew = 0; // seconds that the server's clock is ahead of this one
const now = () => Date.now() / 1000 + skew;
const link = new LinkState(byId("link-state"), byId("lost"));

// -- streams

function traffic(cell, bytesOf, rateOf) {
  const total = el("span", { class: "main" });
  const current = el("span", { class: "sub" });
  cell.append(total, current);
  return (row) => {
    say(total, bytes(bytesOf(row)));
    say(current, rateOf(row) == null ? "rate unknown" : rate(rateOf(row)));
  };
}

const total = (row) => (row.mbit_to_consumer == null ? null : row.mbit_to_consumer + row.mbit_to_producer);

const COLUMNS = [
  {
    id: "stream",
    title: "Stream",
    className: "name",
    sort: (row) => row.label ?? row.uid,
    optionText: (direction) => (direction === "ascending" ? "Stream, A to Z" : "Stream, Z to A"),
    create(cell) {
      const name = el("a", { class: "main" });
      const owner = el("span", { class: "sub" });
      cell.append(name, owner);
      return (row) => {
        set(name, "href", `/streams/${row.uid}`);
        set(name, "title", row.uid);
        say(name, row.label || shortUid(row.uid));
        set(name, "data-unnamed", !row.label);
        say(owner, row.owner);
      };
    },
  },
  {
    id: "side",
    title: "Side",
    className: "side-cell",
    sort: (row) => row.role,
    optionText: (direction) => (direction === "ascending" ? "Side, consumers first" : "Side, producers first"),
    create(cell) {
      const which = el("span", { class: "main" });
      const gateways = el("span", { class: "sub" });
      cell.append(which, gateways);
      return (row) => {
        say(which, side(row.role));
        const [first, second, ...others] = row.gateways;
        say(gateways, others.length ? `${first} and ${others.length + 1} more` : [first, second].filter(Boolean).join(", "));
      };
    },
  },
  {
    id: "state",
    title: "State",
    className: "state",
    sort: rank,
    optionText: (direction) => (direction === "ascending" ? "State, problems first" : "State, problems last"),
    create(cell) {
      const badge = new Badge();
      const since = el("span", { class: "since" });
      const waits = el("span", { class: "sub" });
      const problem = el("span", { class: "problem" });
      cell.append(el("span", { class: "main" }, badge.node, since), waits, problem);
      return (row, tr) => {
        badge.show(row.state);
        say(since, row.state_since == null ? "" : ` for ${duration(now() - row.state_since)}`);
        say(waits, row.waits_for ? `waits for ${row.waits_for}` : "");
        const more = row.problems.length - 1;
        say(problem, row.problems.length ? `${row.problems[0]}${more > 0 ? ` (and ${more} more)` : ""}` : "");
        set(tr, "data-problem", row.problems.length > 0);
      };
    },
  },
  {
    id: "age",
    title: "Age",
    numeric: true,
    sort: (row) => -row.requested_at,
    optionText: (direction) => (direction === "ascending" ? "Age, newest first" : "Age, oldest first"),
    create(cell) {
      const age = el("span", { class: "main" });
      const left = el("span", { class: "sub" });
      cell.append(age, left);
      return (row) => {
        say(age, duration(now() - row.requested_at));
        say(left, `${duration(row.expires_at - now())} left`);
      };
    },
  },
  {
    id: "channels",
    title: "Channels",
    numeric: true,
    first: "descending",
    sort: (row) => row.channels,
    create(cell) {
      const channels = el("span", { class: "main" });
      const open = el("span", { class: "sub" });
      cell.append(channels, open);
      return (row) => {
        say(channels, count(row.channels));
        say(open, `${count(row.connections)} open`);
      };
    },
  },
  {
    id: "to-consumer",
    title: "To consumer",
    numeric: true,
    first: "descending",
    sort: (row) => row.bytes_to_consumer,
    create: (cell) => traffic(cell, (row) => row.bytes_to_consumer, (row) => row.mbit_to_consumer),
  },
  {
    id: "to-producer",
    title: "To producer",
    numeric: true,
    first: "descending",
    sort: (row) => row.bytes_to_producer,
    create: (cell) => traffic(cell, (row) => row.bytes_to_producer, (row) => row.mbit_to_producer),
  },
  {
    id: "rate",
    title: "Rate, last 5 minutes",
    className: "plot-cell",
    first: "descending",
    sort: total,
    create(cell) {
      const plot = new SmallPlot();
      cell.append(plot.node);
      return (row) => plot.draw(histories.get(row.key) ?? null, now());
    },
  },
  {
    id: "resets",
    title: "Resets",
    className: "resets",
    first: "descending",
    sort: (row) => row.resets,
    create(cell) {
      const number = el("span", { class: "main" });
      const reason = el("span", { class: "sub clamp" });
      cell.append(number, reason);
      return (row) => {
        say(number, count(row.resets));
        say(reason, row.last_reset ?? "");
        set(reason, "title", row.last_reset);
      };
    },
  },
];

const table = new DataTable({
  table: byId("streams"),
  columns: COLUMNS,
  key: (row) => row.key,
  pageSize: ROWS,
  empty: "No streams.",
  pager: byId("pager"),
  sortSelect: byId("sort"),
  onSort() {
    remember();
    place();
  },
  onShown: fetchHistories,
});

const filter = { text: "", view: "all" };
const VIEWS = {
  all: () => true,
  streaming: (row) => row.state === "Streaming",
  waiting: (row) => row.waits_for !== "",
  problems: (row) => row.problems.length > 0,
};

function words(row) {
  return [row.label, row.uid, row.owner, row.state, side(row.role), row.waits_for, row.last_reset, ...row.gateways, ...row.problems].join("\n").toLowerCase();
}

function matching() {
  const wanted = filter.text.toLowerCase().split(/\s+/).filter(Boolean);
  const found = [];
  for (const row of streams.values()) {
    if (!VIEWS[filter.view](row)) continue;
    if (wanted.length && !wanted.every((word) => words(row).includes(word))) continue;
    found.push(row);
  }
  return found;
}

let placedAt = 0;
function place(all = streams.size) {
  placedAt = Date.now();
  const found = matching();
  const isFiltered = filter.text !== "" || filter.view !== "all";
  say(table.emptyRow.firstChild, isFiltered && streams.size ? "No stream matches the filter." : "No streams.");
  table.show(found);
  say(byId("found"), isFiltered ? `${count(found.length)} of ${plural(all, "stream")}` : plural(all, "stream"));
}

function remember() {
  const query = new URLSearchParams();
  if (filter.text) query.set("q", filter.text);
  if (filter.view !== "all") query.set("view", filter.view);
  if (table.sorted.id !== "state" || table.sorted.direction !== "ascending") query.set("sort", `${table.sorted.id}.${table.sorted.direction}`);
  history.replaceState(null, "", query.size ? `?${query}` : location.pathname);
}

function recall() {
  const query = new URLSearchParams(location.search);
  filter.text = query.get("q") ?? "";
  filter.view = VIEWS[query.get("view")] ? query.get("view") : "all";
  byId("filter").value = filter.text;
  document.querySelector(`input[name=view][value=${filter.view}]`).checked = true;
  table.sortBy("state", "ascending");
  table.sortBy(...(query.get("sort") ?? "").split("."));
}

byId("filter").addEventListener("input", (event) => {
  filter.text = event.target.value.trim();
  table.page = 0;
  place();
  remember();
});
byId("filters").addEventListener("submit", (event) => event.preventDefault());
for (const radio of document.querySelectorAll("input[name=view]")) {
  radio.addEventListener("change", () => {
    filter.view = radio.value;
    table.page = 0;
    place();
    remember();
  });
}

// -- the last minutes of the streams that are shown

async function fetchHistories(rows) {
  const keys = rows.map((row) => row.key).filter((key) => !asked.has(key));
  if (!keys.length) return;
  for (const key of keys) asked.add(key);
  try {
    const answer = await getJson(`/api/v1/history?${keys.map((key) => `stream=${encodeURIComponent(key)}`).join("&")}`);
    for (const one of answer.histories) histories.set(one.key, one);
    table.refresh();
  } catch {
    for (const key of keys) asked.delete(key); // the events tell whether the server is lost
  }
}

function addPoint(row) {
  const known = histories.get(row.key);
  if (!known || row.rates_at == null || row.rates_at <= (known.times.at(-1) ?? 0)) return;
  known.times.push(row.rates_at);
  known.mbit_to_consumer.push(row.mbit_to_consumer);
  known.mbit_to_producer.push(row.mbit_to_producer);
  while (known.times[0] < row.rates_at - KEPT) for (const column of [known.times, known.mbit_to_consumer, known.mbit_to_producer]) column.shift();
}

// -- gateways

function meter(cell, words) {
  const bar = el("span", { class: "bar" });
  const text = el("span", { class: "main" });
  const share = el("span", { class: "sub" });
  cell.append(text, el("span", { class: "meter", "aria-hidden": "true" }, bar), share);
  return (row) => {
    const { used, whole, say: sentence } = words(row);
    say(text, sentence);
    const part = whole ? Math.min(1, used / whole) : 0;
    bar.style.width = `${(part * 100).toFixed(1)}%`;
    set(bar, "data-tone", part > 0.9 ? "high" : "normal");
    say(share, !whole ? "" : part > 0 && part < 0.01 ? "under 1 % reserved" : `${Math.round(part * 100)} % reserved`);
  };
}

const gateways = new DataTable({
  table: byId("gateways"),
  key: (row) => row.name,
  empty: "No gateways.",
  columns: [
    {
      id: "name",
      title: "Gateway",
      className: "name",
      create(cell) {
        const name = el("span", { class: "main" });
        const address = el("span", { class: "sub" });
        cell.append(name, address);
        return (row) => {
          say(name, row.name);
          say(address, row.address);
        };
      },
    },
    {
      id: "state",
      title: "State",
      className: "state",
      create(cell) {
        const badge = new Badge();
        const since = el("span", { class: "since" });
        const problem = el("span", { class: "problem" });
        const unknown = el("span", { class: "problem" });
        cell.append(el("span", { class: "main" }, badge.node, since), problem, unknown);
        return (row, tr) => {
          badge.show(row.draining && row.state === "linked" ? "draining" : row.state);
          say(since, row.since == null ? "" : ` for ${duration(now() - row.since)}`);
          say(problem, row.state === "linked" ? "" : "gets no new streams");
          say(unknown, row.unknown_streams ? `${plural(row.unknown_streams, "stream")} without a record here` : "");
          set(tr, "data-problem", row.state !== "linked");
        };
      },
    },
    textColumn("streams", "Streams", (row) => count(row.streams), { numeric: true }),
    {
      id: "rate",
      title: "Capacity",
      create: (cell) =>
        meter(cell, (row) => ({ used: row.mbit_used, whole: row.mbit_total, say: row.mbit_total == null ? "not known" : `${rate(row.mbit_used)} of ${rate(row.mbit_total)}` })),
    },
    {
      id: "ports",
      title: "Ports",
      create: (cell) =>
        meter(cell, (row) => ({ used: row.ports_used, whole: row.ports_total, say: row.ports_total == null ? "not known" : `${count(row.ports_used)} of ${count(row.ports_total)}` })),
    },
    {
      id: "elements",
      title: "Elements",
      numeric: true,
      create(cell) {
        const text = el("span", { class: "main" });
        const problem = el("span", { class: "problem" });
        cell.append(text, problem);
        return (row) => {
          say(text, row.elements == null ? "not reported" : `${row.elements_ready} of ${row.elements} ready`);
          say(problem, row.elements != null && row.elements_ready < row.elements ? "some are being replaced" : "");
        };
      },
    },
    {
      id: "certificate",
      title: "Certificate",
      create(cell) {
        const left = el("span", { class: "main" });
        const end = el("span", { class: "sub" });
        cell.append(left, end);
        return (row) => {
          say(left, row.certificate_ends == null ? UNKNOWN : `${duration(row.certificate_ends - now())} left`);
          say(end, row.certificate_ends == null ? "" : `until ${day(new Date(row.certificate_ends * 1000))}`);
        };
      },
    },
  ],
});

// -- what was lately

let recent = { refusals: [], ends: [], kept: 0 };

const when = {
  id: "time",
  title: "Time",
  className: "time",
  create(cell) {
    return (row) => {
      if (cell.firstChild) return; // it never changes
      cell.append(time(Date.parse(row.time) / 1000, moment(new Date(row.time))));
    };
  },
};

const ends = new DataTable({
  table: byId("ends"),
  key: (row) => row.number,
  empty: "No stream has ended since the server started.",
  columns: [
    when,
    {
      id: "stream",
      title: "Stream",
      className: "name",
      create(cell) {
        const name = el("a", { class: "main" });
        const owner = el("span", { class: "sub" });
        cell.append(name, owner);
        return (row) => {
          set(name, "href", `/streams/${row.uid}`);
          set(name, "title", row.uid);
          say(name, row.label || shortUid(row.uid));
          set(name, "data-unnamed", !row.label);
          say(owner, row.owner);
        };
      },
    },
    textColumn("side", "Side", (row) => side(row.role)),
    textColumn("duration", "Life", (row) => duration(row.duration), { numeric: true }),
    textColumn("consumer", "To consumer", (row) => bytes(row.bytes_to_consumer) + (row.complete ? "" : " or more"), { numeric: true }),
    textColumn("producer", "To producer", (row) => bytes(row.bytes_to_producer) + (row.complete ? "" : " or more"), { numeric: true }),
    {
      id: "reason",
      title: "Why",
      className: "reason",
      create(cell) {
        const code = el("code");
        const reason = el("span", { class: "sub" });
        cell.append(code, reason);
        return (row, tr) => {
          say(code, row.code);
          say(reason, row.reason);
          set(tr, "data-problem", row.code !== "released");
        };
      },
    },
  ],
});

const refusals = new DataTable({
  table: byId("refusals"),
  key: (row) => row.number,
  empty: "Nothing has been refused since the server started.",
  columns: [
    when,
    textColumn("what", "What", (row) => row.what),
    {
      id: "who",
      title: "From",
      className: "name",
      create(cell) {
        const identity = el("span", { class: "main" });
        const address = el("span", { class: "sub" });
        cell.append(identity, address);
        return (row) => {
          say(identity, row.identity ?? "without a certificate");
          say(address, row.address);
        };
      },
    },
    {
      id: "reason",
      title: "Why",
      className: "reason",
      create(cell) {
        const code = el("code");
        const reason = el("span", { class: "sub" });
        cell.append(code, reason);
        return (row) => {
          say(code, row.code ?? "");
          show(code, row.code != null);
          say(reason, row.reason + (row.repeated ? ` (and ${plural(row.repeated, "more time")})` : ""));
        };
      },
    },
  ],
});

function placeRecent() {
  for (const [list, name] of [[ends, "ends"], [refusals, "refusals"]]) {
    const button = byId(`all-${name}`);
    const all = button.getAttribute("aria-expanded") === "true";
    list.show(all ? recent[name] : recent[name].slice(0, SHORT_LIST));
    show(button, recent[name].length > SHORT_LIST);
    say(button, all ? `Show only the latest ${SHORT_LIST}` : `Show all ${recent[name].length}`);
  }
}

for (const name of ["ends", "refusals"]) {
  byId(`all-${name}`).addEventListener("click", (event) => {
    set(event.target, "aria-expanded", event.target.getAttribute("aria-expanded") !== "true" ? "true" : "false");
    placeRecent();
  });
}

// -- the server

function showServer(server) {
  const live = Object.values(server.streams).reduce((sum, one) => sum + one, 0);
  say(byId("server-name"), server.listen);
  say(byId("version"), server.version);
  say(byId("tile-streams"), count(live));
  const parts = STATES.filter((state) => server.streams[state]).map((state) => `${count(server.streams[state])} ${state}`);
  say(byId("tile-states"), parts.join(", ") || "none");
  say(byId("tile-consumer"), rate(server.mbit_to_consumer));
  say(byId("tile-producer"), rate(server.mbit_to_producer));
  say(byId("tile-connections"), count(server.connections));
  say(byId("tile-gateways"), `${server.gateways_linked} of ${server.gateways}`);
  set(byId("tile-gateways").closest("div"), "data-problem", server.gateways_linked < server.gateways);
  say(byId("tile-linked"), server.gateways_linked < server.gateways ? "linked: see below" : "linked");
  const warnings = [...server.warnings];
  if (server.insecure) warnings.unshift("This server is insecure: control links are plain TCP, and every user of this machine is every owner.");
  const list = byId("warnings");
  if (list.dataset.of !== warnings.join("\n")) {
    list.dataset.of = warnings.join("\n");
    list.replaceChildren(...warnings.map((text) => el("li", { text })));
  }
  show(byId("warnings-section"), warnings.length > 0);
  document.title = `${count(live)} streams – SciStream ${server.listen}`;
}

// -- everything together

/** Show the first streams at once, before the events are connected and everything is fetched. */
async function showFirst() {
  try {
    const page = await getJson(`/api/v1/streams?limit=${FIRST_PAGE}&after=`);
    if (streams.size) return;
    skew = page.time - Date.now() / 1000;
    for (const row of page.streams) streams.set(row.key, row);
    place(page.total);
  } catch {
    // the events tell whether the server is lost
  }
}

let loaded = { streams: 0, gateways: 0, server: 0, recent: 0 };
let waiting = null; // events that arrive while the lists are fetched

async function load() {
  waiting = [];
  const fresh = new Map();
  const [server, pool, lately] = await Promise.all([getJson("/api/v1/server"), getJson("/api/v1/gateways"), getJson("/api/v1/recent")]);
  skew = server.time - Date.now() / 1000;
  showServer(server);
  gateways.show(pool.gateways);
  recent = lately;
  placeRecent();
  let after = "";
  let limit = FIRST_PAGE;
  const changes = new Map();
  do {
    const page = await getJson(`/api/v1/streams?limit=${limit}&after=${encodeURIComponent(after)}`);
    for (const row of page.streams) {
      fresh.set(row.key, row);
      changes.set(row.key, page.change);
    }
    if (after === "" && !document.body.dataset.loaded) {
      for (const row of page.streams) streams.set(row.key, row);
      place(page.total);
    }
    after = page.more;
    limit = LATER_PAGES;
  } while (after);
  streams.clear();
  for (const [key, row] of fresh) streams.set(key, row);
  histories.clear();
  asked.clear();
  loaded = { server: server.change, gateways: pool.change, recent: lately.change, changes };
  const missed = waiting;
  waiting = null;
  for (const event of missed) apply(event);
  loaded.changes = new Map();
  place();
  document.body.dataset.loaded = "true";
}

function apply(event) {
  if (event.server && event.change > loaded.server) showServer(event.server);
  if (event.gateways && event.change > loaded.gateways) gateways.show(event.gateways);
  if (event.change > loaded.recent && (event.refusals || event.ends)) {
    for (const name of ["refusals", "ends"]) {
      const newest = recent[name][0]?.number ?? 0;
      const added = (event[name] ?? []).filter((one) => one.number > newest);
      recent[name] = [...added, ...recent[name]].slice(0, recent.kept || 200);
    }
    placeRecent();
  }
  let hasOthers = false;
  for (const row of event.streams ?? []) {
    if (event.change <= (loaded.changes.get(row.key) ?? 0)) continue;
    hasOthers ||= !streams.has(row.key);
    streams.set(row.key, row);
    addPoint(row);
  }
  for (const key of event.gone ?? []) {
    hasOthers ||= streams.delete(key);
    histories.delete(key);
    asked.delete(key);
  }
  return hasOthers;
}

let latest = null; // at most one drawing a frame
function draw() {
  if (latest) return;
  latest = requestAnimationFrame(() => {
    latest = null;
    performance.mark("scistream-draw");
    const isDue = needsPlace || (Date.now() - placedAt > REORDER && !table.isInUse);
    needsPlace = false;
    if (isDue) place();
    else table.refresh((row) => streams.get(row.key));
    gateways.refresh();
    performance.measure("scistream-draw", "scistream-draw");
    if (performance.getEntriesByName("scistream-draw", "measure").length > 100) performance.clearMeasures("scistream-draw");
    performance.clearMarks("scistream-draw");
  });
}
let needsPlace = false;

recall();
showFirst();
setInterval(() => {
  if (!link.since && !waiting && !document.hidden) draw();
}, 1000);

new Events("/events", "change", {
  async opened() {
    await load();
    link.live();
  },
  event(data) {
    if (waiting) waiting.push(data);
    else {
      needsPlace = apply(data) || needsPlace;
      draw();
    }
  },
  lost: (since, error) => link.lost(since, error),
  back: () => link.live(),
});
