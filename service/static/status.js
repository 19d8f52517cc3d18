/** What the service is doing: /health and /training, asked for again and again. */

import { Problem, pause } from "./api.js";

const CALM_S = 5; // between looks
const EAGER_S = 2; // while something is awaited
const TRAINING_EVERY = 6; // looks at /health for one at /training, while nothing is being trained

/**
 * Events: "change" after each look. `state` is "ok", "waiting" (no model yet), "failed" (its file cannot be used),
 * "stopping", "offline", "key" (wanted, and not given) or "connecting".
 */
export class Status extends EventTarget {
  state = "connecting";
  health = null; // the last one there was
  training = null;
  /** Models seen so far, by id: a result may be an earlier one's. */
  models = new Map();
  #looks = 0;
  #hurry;

  constructor(api) {
    super();
    this.api = api;
  }

  get model() {
    return this.state === "ok" ? this.health.model : null;
  }

  /** Looks again and again, for as long as the page is open. */
  async watch() {
    for (;;) {
      this.#hurry = new AbortController(); // also for what is asked while it looks
      await this.#look();
      this.dispatchEvent(new Event("change"));
      const isCalm = this.state === "ok" && this.training?.state !== "running";
      await pause(isCalm ? CALM_S : EAGER_S, this.#hurry.signal).catch(() => {});
    }
  }

  /** Looks at once. */
  look() {
    this.#hurry?.abort();
  }

  async #look() {
    try {
      const response = await this.api.get("health");
      if (!response.headers.get("Content-Type")?.startsWith("application/json")) throw await Problem.of(response);
      this.health = await response.json();
      this.state = this.health.status;
      const { model, device, device_name: deviceName } = this.health;
      if (model) this.models.set(model.id, Object.assign(model, { device, deviceName }));
      const isDue = this.state !== "ok" || this.training?.state === "running" || this.#looks % TRAINING_EVERY === 0;
      if (isDue) this.training = await this.#training();
      this.#looks += 1;
    } catch (error) {
      this.state = error.status === 401 ? "key" : "offline";
    }
  }

  async #training() {
    const response = await this.api.get("training");
    return response.ok ? response.json() : null;
  }
}
