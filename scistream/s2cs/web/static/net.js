// The connection to the server: answers of the API, and events, which are requested again when they are lost.

const FIRST_RETRY = 1000;
const LONGEST_RETRY = 10000;
const SILENCE = 40000; // the server sends an event every 15 s at least
const HIDDEN = 60000; // in which a page that nobody sees keeps its connection

export class ApiError extends Error {}

export async function getJson(path) {
  const response = await fetch(path, { headers: { Accept: "application/json" }, cache: "no-store" });
  if (!response.ok) {
    let reason = `${response.status} ${response.statusText}`;
    try {
      reason = (await response.json()).reason ?? reason;
    } catch {
      // not JSON: the status has to do
    }
    const error = new ApiError(reason);
    error.status = response.status;
    throw error;
  }
  return response.json();
}

/**
 * Events of the server, for as long as the page is open.
 *
 * @param {string} path
 * @param {string} kind the name of the events
 * @param {Object} on `opened()` after each connection: fetch everything again; `event(data)`; `lost(since)` with the time
 *   in ms at which the connection was lost, `back()`.
 */
export class Events {
  constructor(path, kind, on) {
    this.path = path;
    this.kind = kind;
    this.on = on;
    this.source = null;
    this.retry = FIRST_RETRY;
    this.timer = 0;
    this.watchdog = 0;
    this.lostSince = 0;
    document.addEventListener("visibilitychange", () => this.#visibility());
    window.addEventListener("online", () => this.#again(0));
    this.connect();
  }

  connect() {
    this.close();
    const source = new EventSource(this.path);
    this.source = source;
    this.#heard();
    source.addEventListener("open", async () => {
      this.#heard();
      try {
        await this.on.opened();
      } catch (error) {
        if (source === this.source) this.#lost(error);
        return;
      }
      if (source !== this.source) return;
      this.retry = FIRST_RETRY;
      if (this.lostSince) {
        this.lostSince = 0;
        this.on.back();
      }
    });
    source.addEventListener(this.kind, (message) => {
      this.#heard();
      this.on.event(JSON.parse(message.data));
    });
    source.addEventListener("error", () => {
      if (source === this.source) this.#lost();
    });
  }

  close() {
    clearTimeout(this.timer);
    clearTimeout(this.watchdog);
    this.source?.close();
    this.source = null;
  }

  #heard() {
    clearTimeout(this.watchdog);
    this.watchdog = setTimeout(() => this.#lost(), SILENCE);
  }

  #lost(error) {
    this.close();
    this.lostSince ||= Date.now();
    this.on.lost(this.lostSince, error);
    this.#again(this.retry);
    this.retry = Math.min(LONGEST_RETRY, this.retry * 2);
  }

  #again(delay) {
    if (this.source) return;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.connect(), delay);
  }

  #visibility() {
    clearTimeout(this.hiding);
    if (document.hidden) {
      this.hiding = setTimeout(() => {
        this.isResting = true;
        this.close();
      }, HIDDEN);
    } else if (this.isResting) {
      this.isResting = false;
      this.connect();
    }
  }
}

/** Says on the page whether it is up to date, in `#link-state` and, when the server is lost, in `#lost`. */
export class LinkState {
  constructor(state, banner) {
    this.state = state;
    this.banner = banner;
    this.since = 0;
  }

  live() {
    this.since = 0;
    this.state.dataset.state = "live";
    if (this.state.textContent !== "Live") this.state.textContent = "Live";
    this.banner.hidden = true;
  }

  lost(since, error) {
    const isNew = !this.since;
    this.since = since;
    this.state.dataset.state = "lost";
    this.state.textContent = "Not connected";
    if (isNew || error) {
      const time = new Date(since).toLocaleTimeString("en-GB");
      const why = error instanceof ApiError ? ` ${error.message}.` : "";
      this.banner.textContent = `The server has been out of reach since ${time}.${why} What you see is from before; this page tries to connect again.`;
    }
    this.banner.hidden = false;
  }
}
