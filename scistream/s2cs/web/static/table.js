// A table whose rows are sorted, filtered and divided into pages here, and whose cells are updated in place.

import { count } from "./format.js";
import { el, say, set, show } from "./dom.js";

const collator = new Intl.Collator("en", { numeric: true, sensitivity: "base" });

function compare(one, other) {
  if (one === other) return 0;
  if (one == null) return 1;
  if (other == null) return -1;
  return typeof one === "string" ? collator.compare(one, other) : one - other;
}

/**
 * @param {Object} options
 *   `table`: the table, with a caption; `columns`: of {id, title, numeric, first: "ascending"|"descending", sort(row),
 *   create(cell) -> update(row)}, the first of which heads the row; without `sort` a column cannot be sorted by;
 *   `key(row)`; `pageSize`; `empty`: what the table says without rows; `pager`: an element, or null for one page;
 *   `sortSelect`: a select for narrow screens, or null; `onSort(state)`, `onShown(rows)`.
 */
export class DataTable {
  constructor(options) {
    Object.assign(this, { pager: null, sortSelect: null, pageSize: Infinity, onSort() {}, onShown() {} }, options);
    this.page = 0;
    this.shown = [];
    this.nodes = new Map();
    this.sorted = null;
    this.body = el("tbody", { role: "rowgroup" });
    this.headers = new Map(this.columns.map((column) => [column.id, this.#header(column)]));
    this.emptyRow = el("tr", { class: "empty", role: "row" }, el("td", { colspan: this.columns.length, role: "cell", text: this.empty }));
    set(this.table, "role", "table");
    this.table.append(el("thead", { role: "rowgroup" }, el("tr", { role: "row" }, [...this.headers.values()])), this.body);
    if (this.sortSelect) this.#fillSelect();
    if (this.pager) this.#makePager();
  }

  #header(column) {
    const className = column.numeric ? "number" : null;
    if (!column.sort) return el("th", { scope: "col", role: "columnheader", class: className, text: column.title });
    const button = el("button", { type: "button", class: "sort", text: column.title, onclick: () => this.#clicked(column) });
    return el("th", { scope: "col", role: "columnheader", class: className, "aria-sort": "none" }, button);
  }

  #clicked(column) {
    const first = column.first ?? "ascending";
    const other = first === "ascending" ? "descending" : "ascending";
    const direction = this.sorted?.id === column.id && this.sorted.direction === first ? other : first;
    this.page = 0;
    this.sortBy(column.id, direction);
    this.onSort(this.sorted);
  }

  sortBy(id, direction) {
    const column = this.columns.find((one) => one.id === id && one.sort);
    if (!column) return;
    this.sorted = { id, direction, column };
    for (const [name, header] of this.headers) {
      if (header.hasAttribute("aria-sort")) set(header, "aria-sort", name === id ? direction : "none");
    }
    if (this.sortSelect) this.sortSelect.value = `${id} ${direction}`;
  }

  #fillSelect() {
    for (const column of this.columns.filter((one) => one.sort)) {
      const first = column.first ?? "ascending";
      for (const direction of [first, first === "ascending" ? "descending" : "ascending"]) {
        const text = direction === "ascending" ? `${column.title}, lowest first` : `${column.title}, highest first`;
        this.sortSelect.append(el("option", { value: `${column.id} ${direction}`, text: column.optionText?.(direction) ?? text }));
      }
    }
    this.sortSelect.addEventListener("change", () => {
      const [id, direction] = this.sortSelect.value.split(" ");
      this.page = 0;
      this.sortBy(id, direction);
      this.onSort(this.sorted);
    });
  }

  #makePager() {
    this.previous = el("button", { type: "button", text: "Previous", onclick: () => this.#turn(-1) });
    this.next = el("button", { type: "button", text: "Next", onclick: () => this.#turn(1) });
    this.where = el("span", { class: "where" });
    this.pager.append(this.previous, this.where, this.next);
  }

  #turn(step) {
    this.page += step;
    this.show(this.rows);
    this.table.closest(".scroll")?.scrollIntoView({ block: "nearest" });
    const button = step > 0 ? this.next : this.previous;
    if (button.disabled) (step > 0 ? this.previous : this.next).focus();
  }

  /** Put rows in order, and show those of the current page. */
  show(rows) {
    this.rows = rows;
    if (this.sorted) {
      const { column, direction } = this.sorted;
      const sign = direction === "ascending" ? 1 : -1;
      const keyed = rows.map((row) => [column.sort(row), this.key(row), row]);
      keyed.sort(([one, oneKey], [other, otherKey]) => {
        if (one == null || other == null) return compare(one, other) || compare(oneKey, otherKey);
        return sign * compare(one, other) || compare(oneKey, otherKey);
      });
      this.ordered = keyed.map(([, , row]) => row);
    } else {
      this.ordered = rows;
    }
    const pages = Math.max(1, Math.ceil(this.ordered.length / this.pageSize));
    this.page = Math.min(Math.max(0, this.page), pages - 1);
    const from = Number.isFinite(this.pageSize) ? this.page * this.pageSize : 0;
    this.shown = this.ordered.slice(from, from + this.pageSize);
    this.#place();
    if (this.pager) {
      show(this.pager, pages > 1);
      say(this.where, `${count(from + 1)} to ${count(from + this.shown.length)} of ${count(this.ordered.length)}`);
      this.previous.disabled = this.page === 0;
      this.next.disabled = this.page === pages - 1;
    }
    this.onShown(this.shown);
  }

  #place() {
    const wanted = new Set(this.shown.map(this.key));
    for (const [key, node] of this.nodes) {
      if (!wanted.has(key)) {
        node.row.remove();
        this.nodes.delete(key);
      }
    }
    this.emptyRow.remove();
    let here = this.body.firstChild;
    for (const row of this.shown) {
      const node = this.#node(row);
      if (node.row === here) here = here.nextSibling;
      else this.body.insertBefore(node.row, here);
      node.update(row);
    }
    if (!this.shown.length) this.body.append(this.emptyRow);
  }

  #node(row) {
    const key = this.key(row);
    let node = this.nodes.get(key);
    if (!node) {
      const updates = [];
      const cells = this.columns.map((column, at) => {
        const cell = el(at ? "td" : "th", {
          role: at ? "cell" : "rowheader",
          scope: at ? null : "row",
          class: [column.numeric ? "number" : "", column.className ?? ""].join(" ").trim() || null,
          "data-label": column.title,
        });
        updates.push(column.create(cell));
        return cell;
      });
      const element = el("tr", { role: "row", "data-key": key }, cells);
      node = {
        row: element,
        update: (now) => {
          node.data = now;
          for (const update of updates) update(now, element);
        },
      };
      this.nodes.set(key, node);
    }
    return node;
  }

  /** Update the cells of a row if it is shown, in place. */
  update(row) {
    this.nodes.get(this.key(row))?.update(row);
  }

  /** Update all rows that are shown, because time has passed. */
  refresh(latest) {
    this.shown = this.shown.map((row) => latest?.(row) ?? row);
    for (const row of this.shown) this.update(row);
  }

  /** Whether somebody points at a row or has the focus in one, so that rows should not move now. */
  get isInUse() {
    return this.body.matches(":hover") || this.body.contains(document.activeElement);
  }
}

/** A column of plain text. */
export function textColumn(id, title, text, extra = {}) {
  return {
    id,
    title,
    create(cell) {
      return (row) => say(cell, text(row));
    },
    ...extra,
  };
}
