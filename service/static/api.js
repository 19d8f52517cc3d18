/** Requests to the service: its key, its problems in plain words, waiting where it asks for that. */

const KEY = "unet-service-key";
const GET_MS = 10_000; // a service that is silent for longer does not answer

/** What a status means to a person, and what to do about it. */
const MEANINGS = {
  400: ["This file cannot be read as an image", "Open it in another program and save it as PNG or TIFF."],
  401: ["This service needs a key", "Try again, and enter the key that whoever runs the service gave you."],
  408: ["The upload took too long", "Try again, or on a faster connection."],
  413: [
    "Too large for this service",
    "Send a smaller part of the image, or fewer pages. Whoever runs the service can raise the limit.",
  ],
  415: ["This is not an image that the service can read", "It reads PNG, JPEG, TIFF, WebP, BMP, GIF and JPEG 2000."],
  422: ["This image does not fit the model", "Choose an image of the kind that the model was trained on."],
  500: ["Something broke inside the service", "It is not your fault. Tell whoever runs the service the number below."],
  502: ["The service does not answer", "It may be restarting. Try again in a moment."],
  503: ["The service cannot answer now", "Try again in a moment."],
  504: ["The image took too long", "Try a smaller image, or switch “More careful” off."],
};

/** What went wrong, for people: `title`, `advice`, and as `message` the details. */
export class Trouble extends Error {
  constructor(title, advice, detail = "") {
    super(detail);
    Object.assign(this, { title, advice });
  }
}

/** An answer that is an error. */
export class Problem extends Trouble {
  constructor(status, detail) {
    super(...(MEANINGS[status] ?? ["The service refused this", "See the reason below."]), detail);
    this.status = status;
  }

  static async of(response) {
    const { detail = "" } = await response.json().catch(() => ({}));
    return new Problem(response.status, detail);
  }
}

/** No answer at all. */
export class Unreachable extends Trouble {
  constructor() {
    super("The connection broke", "Try again. If it breaks again, the image may be too large for a server on the way.");
  }
}

/** Resolves after some seconds; rejects when the signal aborts. */
export const pause = (seconds, signal) =>
  new Promise((resolve, reject) => {
    signal?.throwIfAborted();
    const stop = () => (clearTimeout(timer), reject(signal.reason));
    const timer = setTimeout(() => (signal?.removeEventListener("abort", stop), resolve()), 1000 * seconds);
    signal?.addEventListener("abort", stop, { once: true });
  });

/** A few requests at a time, the most urgent first. */
class Lane {
  #free;
  #waiting = [];

  constructor(width) {
    this.#free = width;
  }

  async enter(urgency, signal) {
    signal?.throwIfAborted();
    if (this.#free) {
      this.#free -= 1;
      return;
    }
    await new Promise((resolve, reject) => {
      const entry = { urgency, resolve };
      const at = this.#waiting.findIndex((other) => other.urgency < urgency);
      this.#waiting.splice(at < 0 ? this.#waiting.length : at, 0, entry);
      signal?.addEventListener("abort", () => {
        this.#waiting = this.#waiting.filter((other) => other !== entry);
        reject(signal.reason);
      });
    });
  }

  leave() {
    const next = this.#waiting.shift();
    if (next) next.resolve();
    else this.#free += 1;
  }
}

export class Api {
  #lanes = { segment: new Lane(2), preview: new Lane(2) }; // a preview does not wait for a long computation
  #asking = null;
  /** The key was asked for, and not given: nobody is asked again before something is done that needs it. */
  declined = false;

  /**
   * @param {(wrong: boolean) => Promise<string|null>} askForKey null: not now
   * @param {() => void} onKey there is another key
   */
  constructor(askForKey, onKey) {
    this.askForKey = askForKey;
    this.onKey = onKey;
  }

  /** The answer, whatever its status; asks for the key where one is wanted. */
  async get(path) {
    return this.#send(path, () => ({ signal: AbortSignal.timeout(GET_MS) }));
  }

  /**
   * The answer to an upload. Raises Problem or Unreachable.
   * @param {"segment"|"preview"} path
   * @param {File} file
   * @param {Record<string, string|number|boolean|null>} options those that are null are left out
   * @param {{signal?: AbortSignal, urgency?: number, onWait?: (seconds: number) => void, onStart?: () => void}} how
   */
  async post(path, file, options, { signal, urgency = 0, onWait, onStart } = {}) {
    const body = new FormData();
    for (const [name, value] of Object.entries(options)) if (value !== null) body.append(name, String(value));
    body.append("file", file, file.name);
    const lane = this.#lanes[path];
    await lane.enter(urgency, signal);
    try {
      for (;;) {
        onStart?.();
        const response = await this.#send(path, () => ({ method: "POST", body, signal }));
        if (response.ok) return { blob: await readAll(response, signal), headers: response.headers };
        const seconds = Number(response.headers.get("Retry-After"));
        if (response.status !== 503 || !(seconds > 0)) throw await Problem.of(response);
        onWait?.(seconds);
        await pause(seconds, signal);
      }
    } catch (error) {
      if (error instanceof Unreachable) await check(file);
      throw error;
    } finally {
      lane.leave();
    }
  }

  /** `init` makes the options of `fetch`, for each try. */
  async #send(path, init) {
    for (;;) {
      const key = stored();
      const response = await reach(path, { ...init(), headers: key ? { Authorization: `Bearer ${key}` } : {} });
      if (response.status !== 401) return response;
      if (this.declined) throw await Problem.of(response);
      if (stored() === key) await this.#newKey(Boolean(key)); // else another request has asked meanwhile
    }
  }

  /** All requests that want the key wait for the same dialog. */
  async #newKey(wrong) {
    this.#asking ??= this.askForKey(wrong).finally(() => (this.#asking = null));
    const key = await this.#asking;
    this.declined = key === null;
    if (key === null) throw new Problem(401);
    if (stored() === key) return;
    sessionStorage.setItem(KEY, key);
    this.onKey();
  }
}

/** A file that has changed since it was added cannot be read, which looks like no answer. */
async function check(file) {
  try {
    await file.slice(0, 1).arrayBuffer();
  } catch {
    throw new Trouble("The file has changed or is gone", "Add it again.");
  }
}

const stored = () => sessionStorage.getItem(KEY);

/** `fetch`, where no answer is Unreachable. */
async function reach(path, init) {
  try {
    return await fetch(path, { ...init, cache: "no-store" });
  } catch {
    init.signal?.throwIfAborted();
    throw new Unreachable();
  }
}

async function readAll(response, signal) {
  try {
    return await response.blob();
  } catch {
    signal?.throwIfAborted();
    throw new Unreachable();
  }
}
