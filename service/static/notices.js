/** Lines above the image that tell of something. */

import { $, make } from "./dom.js";

/** Shows a line, instead of the one with the same id; null takes it away. */
export function notice(id, text, { isError = false, action = null } = {}) {
  const before = $(`notice-${id}`);
  if (!text) return before?.remove();
  if (before?.querySelector("p").textContent === text) return;
  const line = make("div", { id: `notice-${id}`, className: "notice", role: isError ? "alert" : "status" }, make("p", {}, text));
  const button = (label, className, onclick) => line.append(make("button", { type: "button", className, onclick }, label));
  if (action) button(action.label, "primary small", action.act);
  if (isError) button("Dismiss", "plain small", () => line.remove());
  before ? before.replaceWith(line) : $("notices").append(line);
}
