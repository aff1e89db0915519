// The page of one stream: what it waits for, its plots, channels, paths and resets, for each side that this server has.

import { bytes, count, duration, moment, plural, rate, rateUnit, shortUid, side, significant, UNKNOWN } from "./format.js";
import { byId, el, say, set, show } from "./dom.js";
import { Events, getJson, LinkState } from "./net.js";
import { LargePlot, RATE_SERIES } from "./plot.js";
import { Badge } from "./states.js";
import { DataTable, textColumn } from "./table.js";

const uid = decodeURIComponent(location.pathname.split("/")[2] ?? "");
const link = new LinkState(byId("link-state"), byId("lost"));
let skew = 0;
const now = () => Date.now() / 1000 + skew;

const milliseconds = () => ({ unit: "ms", divisor: 1 });
const perSecond = () => ({ unit: "segments/s", divisor: 1 });

function twoLines(main, sub) {
  return (cell) => {
    const first = el("span", { class: "main" });
    const second = el("span", { class: "sub" });
    cell.append(first, second);
    return (row) => {
      say(first, main(row));
      say(second, sub(row) ?? "");
    };
  };
}

const known = (value, text) => (value ? text(value) : UNKNOWN);

const CHANNELS = [
  {
    id: "channel",
    title: "Channel",
    className: "name",
    sort: (row) => row.channel,
    create(cell) {
      const number = el("span", { class: "main" });
      const gateway = el("span", { class: "sub" });
      const problem = el("span", { class: "problem" });
      cell.append(number, gateway, problem);
      return (row, tr) => {
        say(number, String(row.channel));
        say(gateway, row.gateway);
        say(problem, row.broken_reason == null ? "" : `broken for ${duration(row.broken_seconds)}: ${row.broken_reason}`);
        set(tr, "data-problem", row.broken_reason != null);
      };
    },
  },
  {
    id: "listener",
    title: "Listens on",
    create: twoLines(
      (row) => row.listener ?? UNKNOWN,
      (row) => (row.target ? `leads to ${row.target}` : row.wan_listener ? `for the WAN ${row.wan_listener}` : "no target yet"),
    ),
  },
  { id: "connections", title: "Connections", numeric: true, first: "descending", sort: (row) => row.figures?.connections ?? null, create: twoLines((row) => (row.figures ? `${count(row.figures.connections)} open` : UNKNOWN), (row) => (row.figures ? `${count(row.figures.accepted)} in all, ${count(row.figures.ready)} ready` : null)) },
  { id: "to-consumer", title: "To consumer", numeric: true, first: "descending", sort: (row) => row.figures?.bytes_to_consumer ?? null, create: twoLines((row) => bytes(row.figures?.bytes_to_consumer), () => null) },
  { id: "to-producer", title: "To producer", numeric: true, first: "descending", sort: (row) => row.figures?.bytes_to_producer ?? null, create: twoLines((row) => bytes(row.figures?.bytes_to_producer), () => null) },
  { id: "delivery", title: "Delivery rate", numeric: true, first: "descending", sort: (row) => row.figures?.delivery_mbit ?? null, create: twoLines((row) => known(row.figures?.delivery_mbit, rate), () => null) },
  { id: "rtt", title: "Round trip", numeric: true, first: "descending", sort: (row) => row.figures?.rtt_ms ?? null, create: twoLines((row) => known(row.figures?.rtt_ms, (ms) => `${significant(ms)} ms`), () => null) },
  { id: "retransmits", title: "Retransmitted", numeric: true, first: "descending", sort: (row) => row.figures?.retransmits ?? null, create: twoLines((row) => count(row.figures?.retransmits), (row) => (row.figures ? "segments" : null)) },
  { id: "waiting", title: "Unread", numeric: true, first: "descending", sort: (row) => row.figures?.waiting ?? null, create: twoLines((row) => bytes(row.figures?.waiting), () => null) },
  { id: "resets", title: "Resets", numeric: true, first: "descending", sort: (row) => row.figures?.reset ?? null, create: twoLines((row) => count(row.figures?.reset), () => null) },
];

const PATHS = [
  { id: "path", title: "Path", className: "name", create: twoLines((row) => (row.local ? `${row.local} → ${row.remote}` : "all other paths"), (row) => (row.up ? `up for ${duration(row.seconds)}` : `down for ${duration(row.seconds)}`)) },
  textColumn("connections", "Connections", (row) => count(row.connections), { numeric: true }),
  textColumn("rtt", "Round trip", (row) => known(row.rtt_ms, (ms) => `${significant(ms)} ms`), { numeric: true }),
  textColumn("to-consumer", "To consumer", (row) => bytes(row.bytes_to_consumer), { numeric: true }),
  textColumn("to-producer", "To producer", (row) => bytes(row.bytes_to_producer), { numeric: true }),
  textColumn("retransmits", "Retransmitted", (row) => `${count(row.retransmits)} segments`, { numeric: true }),
  textColumn("failures", "Went down", (row) => plural(row.failures, "time"), { numeric: true }),
];

const CAUSES = { application: "application here", "far-side": "far side", wan: "WAN", stranger: "stranger", gateway: "gateway" };
const RESETS = [
  { id: "reason", title: "Why connections were reset", className: "reason", create: twoLines((row) => row.reason, (row) => `caused by: ${CAUSES[row.cause] ?? row.cause}`) },
  textColumn("channel", "Channel", (row) => String(row.channel), { numeric: true }),
  textColumn("count", "How often", (row) => count(row.count), { numeric: true }),
  textColumn("ago", "Last", (row) => `${duration(row.seconds_ago)} ago`, { numeric: true }),
];

/** What the page shows of one side. */
class Side {
  constructor(role) {
    const name = side(role);
    const id = `side-${role}`;
    this.badge = new Badge();
    this.since = el("span", { class: "since" });
    this.waits = el("p", { class: "waits" });
    this.problems = el("ul", { class: "problems" });
    this.facts = el("dl", { class: "facts" });
    this.plots = [
      new LargePlot({ title: "Rate", series: RATE_SERIES, unit: rateUnit }),
      new LargePlot({ title: "Round-trip time", unit: milliseconds, series: [{ name: "mean of all channels", className: "consumer", values: (history) => history.rtt_ms }] }),
      new LargePlot({ title: "Retransmissions", unit: perSecond, series: [{ name: "all channels", className: "consumer", values: (history) => history.retransmits }] }),
    ];
    const labelled = (caption) => el("table", { class: "cards" }, el("caption", { class: "hidden", text: caption }));
    this.channels = new DataTable({ table: labelled(`Channels at the ${name}'s side`), columns: CHANNELS, key: (row) => row.channel, empty: "No channels have been reserved." });
    this.channels.sortBy("channel", "ascending");
    this.paths = new DataTable({ table: labelled("Paths over the WAN"), columns: PATHS, key: (row) => `${row.local} ${row.remote}`, empty: "None." });
    this.resets = new DataTable({ table: labelled("Reasons of resets, newest first"), columns: RESETS, key: (row) => `${row.channel} ${row.cause} ${row.reason}`, empty: "No connection was reset." });
    this.channels.onSort = () => this.channels.show(this.channels.rows);
    const part = (title, table) => el("section", { "aria-label": `${title}, ${name}` }, el("h3", { text: title }), el("div", { class: "scroll" }, table.table));
    this.pathsPart = part("Paths over the WAN", this.paths);
    this.node = el(
      "section",
      { class: "side", "aria-labelledby": id },
      el("div", { class: "section-head" }, el("h2", { id, text: `${name[0].toUpperCase()}${name.slice(1)}'s side` }), el("p", { class: "state-now" }, this.badge.node, this.since)),
      this.waits,
      this.problems,
      this.facts,
      el("div", { class: "plots" }, this.plots.map((plot) => plot.node)),
      part("Channels", this.channels),
      this.pathsPart,
      part("Resets", this.resets),
    );
    this.view = null;
  }

  show(view) {
    const { stream } = view;
    this.view = view;
    this.badge.show(stream.state);
    say(this.waits, stream.waits_for ? `Waits for ${stream.waits_for}.` : "");
    show(this.waits, stream.waits_for !== "");
    const text = stream.problems.join("\n");
    if (this.problems.dataset.of !== text) {
      this.problems.dataset.of = text;
      this.problems.replaceChildren(...stream.problems.map((one) => el("li", { text: one })));
    }
    show(this.problems, stream.problems.length > 0);
    this.channels.show(view.channels);
    this.paths.show(view.paths);
    show(this.pathsPart, view.paths.length > 0);
    this.resets.show(view.resets);
    if (view.history.times.length || !this.plots[0].history) {
      for (const plot of this.plots) plot.draw(view.history, now());
    }
    this.pass();
  }

  /** Update what changes with time alone. */
  pass() {
    const { stream, ...view } = this.view;
    say(this.since, stream.state_since == null ? "" : `for ${duration(now() - stream.state_since)}`);
    const at = (seconds) => (seconds == null ? UNKNOWN : moment(new Date(seconds * 1000)));
    const isOver = stream.state === "Released";
    const facts = [
      ["Owner", stream.owner],
      ["Requested", `${at(stream.requested_at)}, ${duration(now() - stream.requested_at)} ago`],
      isOver ? ["Released", at(stream.released_at)] : ["Expires", `${at(stream.expires_at)}, in ${duration(stream.expires_at - now())}`],
      ["First streaming", at(stream.started_at)],
      ["Reserved", `${rate(stream.reserved_mbit)} over ${plural(stream.channels, "channel")}`],
      ["Gateways", stream.gateways.join(", ") || UNKNOWN],
      ["Application", view.application.join(", ") || (stream.role === "PROD" ? "has not said Hello" : view.application_linked ? "linked" : "not linked")],
      ["Connections", `${count(stream.connections)} open, ${count(stream.connections_total)} in all, ${count(stream.resets)} reset`],
      ["Carried", `${bytes(stream.bytes_to_consumer)} to the consumer, ${bytes(stream.bytes_to_producer)} to the producer`],
      ["Gateways connect", view.wan_dialer === "PROD" ? "from the producer's to the consumer's" : view.wan_dialer === "CONS" ? "from the consumer's to the producer's" : "not decided yet"],
      ["User's client", view.owner_linked ? "linked" : "not linked: not needed while streaming"],
    ];
    facts.push(["Owner certified by", stream.issuer ?? "nobody: this server is insecure"]);
    if (view.wrong_hellos) facts.push(["Wrong keys", `${plural(view.wrong_hellos, "Hello")} with a wrong key`]);
    if (view.probe) facts.push(["Probe", view.probe.state + (view.probe.reason ? `: ${view.probe.reason}` : "")]);
    while (this.facts.children.length > facts.length) this.facts.lastChild.remove();
    facts.forEach(([name, value], n) => {
      let pair = this.facts.children[n];
      if (!pair) {
        pair = el("div", {}, el("dt"), el("dd"));
        this.facts.append(pair);
      }
      say(pair.firstChild, name);
      say(pair.lastChild, value);
      set(pair.lastChild, "class", String(value).startsWith("sha256:") ? "digest" : null);
    });
  }
}

const sides = new Map();

function display(answer) {
  skew = answer.time - Date.now() / 1000;
  const first = answer.sides[0].stream;
  const name = first.label || shortUid(uid);
  say(byId("title"), first.label || `Stream ${shortUid(uid)}`);
  say(byId("crumb"), name);
  document.title = `${name} – ${first.state} – SciStream`;
  for (const view of answer.sides) {
    const role = view.stream.role;
    if (!sides.has(role)) {
      sides.set(role, new Side(role));
      byId("sides").append(sides.get(role).node);
    }
    sides.get(role).show(view);
  }
  document.body.dataset.loaded = "true";
}

say(byId("uid"), uid);
say(byId("crumb"), shortUid(uid));
set(byId("json"), "href", `/api/v1/streams/${uid}`);
say(byId("json"), `/api/v1/streams/${uid}`);
setInterval(() => {
  if (!link.since && !document.hidden) for (const one of sides.values()) one.pass();
}, 1000);

const events = new Events(`/events?stream=${encodeURIComponent(uid)}`, "stream", {
  async opened() {
    display(await getJson(`/api/v1/streams/${encodeURIComponent(uid)}`));
    link.live();
  },
  event: display,
  async lost(since, error) {
    link.lost(since, error);
    if (document.body.dataset.loaded || error) return;
    try {
      await getJson(`/api/v1/streams/${encodeURIComponent(uid)}`); // an EventSource does not say why it failed
    } catch (reason) {
      if (reason.status !== 404) return;
      events.close();
      say(byId("lost"), `There is no stream ${uid} here: it was released more than a day ago, or is of another server.`);
      say(byId("link-state"), "Not found");
    }
  },
  back: () => link.live(),
});
