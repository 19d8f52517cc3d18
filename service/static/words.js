/** Numbers, times and plurals as people read them. */

const whole = new Intl.NumberFormat("en");
const small = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
const DAY = { day: "numeric", month: "long", year: "numeric" };

/** 1234 -> "1,234"; below 100 with three digits: 3.28, 0.00413. */
export const number = (value) =>
  Math.abs(value) >= 100 || Number.isInteger(value) ? whole.format(Math.round(value)) : small.format(value);

export const percent = (share) => {
  const digits = share >= 0.1 || share === 0 ? 1 : 2;
  return `${(100 * share).toFixed(digits)} %`;
};

/** count(1, "object") -> "1 object"; count(2, "class", "classes"). */
export const count = (n, one, many = `${one}s`) => `${whole.format(n)} ${n === 1 ? one : many}`;

/** Seconds -> "8 seconds", "3 minutes", "1 h 20 min". */
export function duration(seconds) {
  if (seconds < 1) return "a moment";
  if (seconds < 90) return count(Math.round(seconds), "second");
  const minutes = Math.round(seconds / 60);
  if (minutes < 90) return count(minutes, "minute");
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

/** Milliseconds -> "240 ms" or "1.3 s". */
export const milliseconds = (ms) => (ms < 1000 ? `${Math.round(ms)} ms` : `${number(ms / 1000)} s`);

/** ISO 8601 -> "12 March 2026", or null. */
export function day(iso) {
  const date = new Date(iso ?? NaN);
  return Number.isNaN(date.getTime()) ? null : date.toLocaleDateString("en-GB", DAY);
}

/** The time on the clock, "15:42", with the day where it is not today. */
export function clock(date) {
  const time = date.toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit" });
  return date.toDateString() === new Date().toDateString() ? time : `${time} on ${day(date)}`;
}
