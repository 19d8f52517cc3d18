/** The page slider of a stack. */

import { $, fill } from "./dom.js";

const REST_MS = 150; // of the slider, before a page is turned to

/** Event "turn": detail is the page, from 1. */
export class Pages extends EventTarget {
  #item = null; // whose pages they are
  #wanted = null; // page that the slider is at, until it rests
  #timer;

  constructor() {
    super();
    $("page").addEventListener("input", () => this.#want(Number($("page").value)));
    $("page-back").addEventListener("click", () => this.step(-1));
    $("page-on").addEventListener("click", () => this.step(1));
  }

  /** @param {{page: number, pages: number} | null} item */
  show(item) {
    if (item !== this.#item) this.#stopTurning();
    this.#item = item;
    if (item) this.#draw();
  }

  step(by) {
    if (this.#item) this.#want((this.#wanted ?? this.#item.page) + by);
  }

  #want(page) {
    if (page < 1 || page > this.#item.pages) return;
    clearTimeout(this.#timer);
    this.#wanted = page;
    this.#draw();
    this.#timer = setTimeout(() => {
      this.#stopTurning();
      if (page !== this.#item.page) this.dispatchEvent(new CustomEvent("turn", { detail: page }));
    }, REST_MS);
  }

  #stopTurning() {
    clearTimeout(this.#timer);
    this.#wanted = null;
  }

  #draw() {
    const { pages } = this.#item;
    const page = this.#wanted ?? this.#item.page;
    $("pages").hidden = pages < 2;
    $("page").max = pages;
    $("page").value = page;
    fill($("page"), pages > 1 ? (page - 1) / (pages - 1) : 0);
    $("page-text").textContent = `${page} of ${pages}`;
    $("page-back").disabled = page === 1;
    $("page-on").disabled = page === pages;
  }
}
