/** The page slider of a stack. */

import { $, fill } from "./dom.js";

const REST_MS = 150; // of the slider, before a page is turned to

/** Event "turn": detail is the page, from 1. */
export class Pages extends EventTarget {
  #page = 1;
  #pages = 1;
  #wanted = null; // page that the slider is at, until it rests
  #timer;

  constructor() {
    super();
    $("page").addEventListener("input", () => this.#want(Number($("page").value)));
    $("page-back").addEventListener("click", () => this.step(-1));
    $("page-on").addEventListener("click", () => this.step(1));
  }

  show(page, pages) {
    [this.#page, this.#pages] = [page, pages];
    this.#draw();
  }

  step(by) {
    this.#want((this.#wanted ?? this.#page) + by);
  }

  #want(page) {
    if (page < 1 || page > this.#pages) return;
    clearTimeout(this.#timer);
    this.#wanted = page;
    this.#draw();
    this.#timer = setTimeout(() => {
      this.#wanted = null;
      if (page !== this.#page && page <= this.#pages) this.dispatchEvent(new CustomEvent("turn", { detail: page }));
    }, REST_MS);
  }

  #draw() {
    const [page, pages] = [Math.min(this.#wanted ?? this.#page, this.#pages), this.#pages];
    $("pages").hidden = pages < 2;
    $("page").max = pages;
    $("page").value = page;
    fill($("page"), pages > 1 ? (page - 1) / (pages - 1) : 0);
    $("page-text").textContent = `${page} of ${pages}`;
    $("page-back").disabled = page === 1;
    $("page-on").disabled = page === pages;
  }
}
