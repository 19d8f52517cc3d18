/** Lines above the image that tell of something. */

import { $, make } from "./dom.js";

/** Shows a line, instead of the one with the same id; null takes it away. */
export function notice(id, text, { isError = false, action = null } = {}) {
  const before = $(`notice-${id}`);
  if (!text) return before?.remove();
  if (before?.querySelector("p").textContent === text) return;
  const button = (label, className, onclick) => make("button", { type: "button", className, onclick }, label);
  const role = isError ? "alert" : "status";
  const line = make("div", { id: `notice-${id}`, className: "notice", role }, make("p", {}, text));
  if (action) line.append(button(action.label, "primary small", action.act));
  if (isError) line.append(button("Dismiss", "plain small", () => line.remove()));
  before ? before.replaceWith(line) : $("notices").append(line);
}
