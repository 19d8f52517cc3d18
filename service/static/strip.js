/** The strip of thumbnails: one for each image, with its state. */

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
    const show = Object.assign(document.createElement("button"), { type: "button", className: "thumbnail" });
    const name = Object.assign(document.createElement("span"), { className: "name", textContent: item.name });
    const state = Object.assign(document.createElement("span"), { className: "state" });
    const frame = Object.assign(document.createElement("span"), { className: "frame" });
    item.thumbnail.setAttribute("aria-hidden", "true");
    frame.append(item.thumbnail);
    show.append(frame, name, state);
    show.addEventListener("click", () => this.#actions.show(item));
    const remove = Object.assign(document.createElement("button"), { type: "button", className: "remove" });
    remove.setAttribute("aria-label", `Remove ${item.name}`);
    remove.innerHTML = '<svg><use href="#i-close"/></svg>';
    remove.addEventListener("click", () => this.#actions.remove(item));
    const row = document.createElement("li");
    row.append(show, remove);
    return row;
  }
}
