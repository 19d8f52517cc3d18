/** The strip of thumbnails: one for each image, with its state. */

import { make, shape } from "./dom.js";

export class Strip {
  #list;
  #rows = new Map(); // item -> li
  #actions;

  /** @param {HTMLUListElement} list @param {{show: (item: object) => void, remove: (item: object) => void}} actions */
  constructor(list, actions) {
    this.#list = list;
    this.#actions = actions;
  }

  render(items, current) {
    for (const [item, row] of this.#rows) {
      if (items.includes(item)) continue;
      row.remove();
      this.#rows.delete(item);
    }
    for (const item of items) {
      if (!this.#rows.has(item)) {
        this.#rows.set(item, this.#row(item));
        this.#list.append(this.#rows.get(item));
        this.update(item);
      }
      this.#rows.get(item).firstElementChild.setAttribute("aria-current", String(item === current));
    }
    this.#rows.get(current)?.scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  update(item) {
    const row = this.#rows.get(item);
    if (!row) return;
    row.dataset.state = item.state;
    const words = item.state === "failed" ? `failed: ${item.error.title ?? item.error.message}` : item.state;
    row.querySelector(".state").textContent = words;
    row.firstElementChild.title = `${item.name}: ${words}`;
  }

  #row(item) {
    item.thumbnail.setAttribute("aria-hidden", "true");
    const show = make(
      "button",
      { type: "button", className: "thumbnail", onclick: () => this.#actions.show(item) },
      make("span", { className: "frame" }, item.thumbnail),
      make("span", { className: "name" }, item.name),
      make("span", { className: "state" }),
    );
    const cross = shape("svg", {}, shape("use", { href: "#i-close" }));
    const onclick = () => this.#actions.remove(item);
    const ariaLabel = `Remove ${item.name}`;
    const remove = make("button", { type: "button", className: "remove", ariaLabel, onclick }, cross);
    return make("li", {}, show, remove);
  }
}
