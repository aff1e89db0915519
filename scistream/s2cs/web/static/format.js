// Numbers, times and sizes as text, the same everywhere on the pages.

const SIZES = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
const RATES = ["bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s"];
export const UNKNOWN = "–";

function scaled(value, units) {
  let step = 0;
  while (step < units.length - 1 && Math.abs(value) >= 999.5) {
    value /= 1000;
    step += 1;
  }
  return `${significant(value)} ${units[step]}`;
}

/** Three digits: 1.23, 12.3, 123. */
export function significant(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  return value.toFixed(size >= 99.95 || Number.isInteger(value) ? 0 : size >= 9.995 ? 1 : 2);
}

export function bytes(count) {
  return count == null ? UNKNOWN : scaled(count, SIZES);
}

/** @param {?number} mbit Mbit/s */
export function rate(mbit) {
  if (mbit == null) return UNKNOWN;
  return scaled(Math.round(mbit * 1e6), RATES);
}

/** The unit in which rates up to `mbit` are written, and by what to divide Mbit/s for it. */
export function rateUnit(mbit) {
  let unit = 0;
  let bits = mbit * 1e6;
  while (unit < RATES.length - 1 && bits >= 999.5) {
    bits /= 1000;
    unit += 1;
  }
  return { unit: RATES[unit], divisor: 10 ** (3 * unit - 6) };
}

export function count(number) {
  return number == null ? UNKNOWN : number.toLocaleString("en-GB").replaceAll(",", "\u202f");
}

/** A span of time, calm enough to be read while it grows: "45 s", "12 min", "3 h 5 min", "2 d 4 h". */
export function duration(seconds) {
  if (seconds == null) return UNKNOWN;
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  const minutes = Math.floor(whole / 60);
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  const [large, small] = hours < 24 ? [`${hours} h`, minutes % 60 && `${minutes % 60} min`] : [`${Math.floor(hours / 24)} d`, hours % 24 && `${hours % 24} h`];
  return small ? `${large} ${small}` : large;
}

const twoDigits = (number) => String(number).padStart(2, "0");

export function clock(date, withSeconds = true) {
  const text = `${twoDigits(date.getHours())}:${twoDigits(date.getMinutes())}`;
  return withSeconds ? `${text}:${twoDigits(date.getSeconds())}` : text;
}

export function day(date) {
  return `${date.getFullYear()}-${twoDigits(date.getMonth() + 1)}-${twoDigits(date.getDate())}`;
}

/** The time alone if it is today, and with the day otherwise. */
export function moment(date, now = new Date()) {
  return day(date) === day(now) ? clock(date) : `${day(date)} ${clock(date, false)}`;
}

export function plural(number, word) {
  return `${count(number)} ${word}${number === 1 ? "" : "s"}`;
}

const SIDES = { PROD: "producer", CONS: "consumer" };
export const side = (role) => SIDES[role] ?? role;
export const shortUid = (uid) => uid.slice(0, 8);
