/** The threshold slider. */

import { $, fill } from "./dom.js";

/** Event "change": another value, by hand. */
export class Threshold extends EventTarget {
  own = 0.5; // the model's
  byHand = null; // null: the model's own

  constructor() {
    super();
    $("threshold").addEventListener("input", () => this.#set(Number($("threshold").value)));
    $("threshold-reset").addEventListener("click", () => {
      $("threshold").focus(); // the button is disabled now
      this.#set(null);
    });
  }

  get value() {
    return this.byHand ?? this.own;
  }

  /** With two decimals, or three where it has as many. */
  get text() {
    const digits = Math.abs(100 * this.value - Math.round(100 * this.value)) > 1e-6 ? 3 : 2;
    return this.value.toFixed(digits);
  }

  /** @param {{binary: boolean, threshold: number}|null} model */
  show(model) {
    this.own = model?.threshold ?? 0.5;
    $("threshold-section").hidden = model?.binary === false;
    $("threshold").value = this.value;
    fill($("threshold"), this.value);
    $("threshold-text").textContent = this.text;
    fill($("tick"), this.own);
    $("threshold-reset").disabled = this.byHand === null;
  }

  step(by) {
    const value = Math.round(100 * (this.value + by)) / 100;
    if (!$("threshold-section").hidden) this.#set(Math.min(1, Math.max(0, value)));
  }

  #set(value) {
    this.byHand = value;
    this.show({ binary: true, threshold: this.own });
    this.dispatchEvent(new Event("change"));
  }
}
