// The states of streams and gateways: their order, and their marks.

import { el, say, set } from "./dom.js";

export const STATES = ["Idle", "Reserving", "Listening", "Ready", "Updating", "Streaming", "Releasing", "Released"];

const TONES = {
  Streaming: "good",
  Listening: "waiting",
  Ready: "waiting",
  Reserving: "busy",
  Updating: "busy",
  Releasing: "busy",
  Released: "over",
  linked: "good",
  silent: "bad",
  down: "bad",
  draining: "busy",
};

const WORDS = { linked: "Linked", silent: "Silent", down: "Not linked", draining: "Draining" };

/** A mark with a state, as a coloured dot and a word. */
export class Badge {
  constructor() {
    this.node = el("span", { class: "badge" });
  }

  show(state) {
    say(this.node, WORDS[state] ?? state);
    set(this.node, "data-tone", TONES[state] ?? "over");
  }
}

/** Streams with problems first, and then by state. */
export function rank(stream) {
  return (stream.problems.length ? 0 : 100) + STATES.indexOf(stream.state);
}
