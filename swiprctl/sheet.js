"use strict";
// The page's script. Pictures are cards, made once each and moved where the order and the threshold
// put them, some hundred at a time, so that a page of 10,000 answers at once. Names and labels are
// text throughout: nothing here makes HTML of a string.
(() => {
  const find = (id) => document.getElementById(id);
  const told = (id) => JSON.parse(find(id).textContent);
  const rows = told("rows"), labels = told("labels");
  const PATH = 0, ADDRESS = 1, VALUES = 2, ERROR = 3;
  const SHOWN = 5, FIRST = 200, AT_ONCE = 500;
  const groups = ["reached", "below", "without"].map((id) => {
    const section = find(id);
    return { section, title: section.querySelector("h2"), list: section.querySelector("ul") };
  });
  const REACHED = 0, BELOW = 1, WITHOUT = 2;

  const cards = new Array(rows.length);
  const marked = new Set();
  let label = 0, order = 0, threshold = 0.5, low = 0, high = 1;
  let sorted = [], current = null, last = null;

  // -- numbers

  const value = (row, at = label) => rows[row][VALUES][at] ?? NaN;
  const text = (number) => low >= 0 && high <= 1 ? number.toFixed(3)
    : Number(number.toPrecision(4)).toString();
  const groupOf = (row) => {
    const found = value(row);
    return Number.isNaN(found) ? WITHOUT : found >= threshold ? REACHED : BELOW;
  };

  function best(row) {
    const found = [];
    for (const [at, number] of Object.entries(rows[row][VALUES])) {
      if (number === null || (found.length === SHOWN && number <= found[SHOWN - 1][1])) continue;
      found.push([Number(at), number]);
      found.sort((a, b) => b[1] - a[1]);
      if (found.length > SHOWN) found.pop();
    }
    if (!Number.isNaN(value(row)) && !found.some(([at]) => at === label))
      found.splice(SHOWN - 1, 1, [label, value(row)]);
    return found;
  }

  // -- cards

  // What moves the cursor, or turns the direction of writing, is shown by its number.
  const ODD = /[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu;
  const shown = (name) => name.replace(ODD, (c) => {
    const code = c.codePointAt(0);
    if (code >= 0xdc80 && code <= 0xdcff) return `\\x${(code - 0xdc00).toString(16)}`;
    return code < 0x100 ? `\\x${code.toString(16).padStart(2, "0")}` : `\\u{${code.toString(16)}}`;
  });

  function make(tag, name, content) {
    const made = document.createElement(tag);
    if (name) made.className = name;
    if (content !== undefined) made.textContent = content;
    return made;
  }

  function card(row) {
    const [path, address, , error] = rows[row];
    const made = make("li"), box = make("label"), check = make("input");
    check.type = "checkbox";
    check.tabIndex = -1;
    check.checked = marked.has(row);
    check.setAttribute("aria-label", `Mark ${shown(path)}`);
    box.append(check, address ? image(address) : make("span", "picture missing", "no file"));
    const name = make(address ? "a" : "span", "name");
    // A long path is cut in its folders: the file's name is what tells pictures apart.
    const cut = path.lastIndexOf("/") + 1;
    if (cut) name.append(make("bdi", "folder", shown(path.slice(0, cut))));
    name.append(make("bdi", "file", shown(path.slice(cut))));
    name.title = shown(path);
    if (address) {
      name.href = address;
      name.target = "_blank";
      name.rel = "noopener";
      name.tabIndex = -1;
    }
    made.append(box, name, make("div", "values"));
    if (error) made.lastChild.append(make("div", "error", shown(error)));
    made.row = row;
    return made;
  }

  function image(address) {
    const made = make("img", "picture");
    made.loading = "lazy";
    made.decoding = "async";
    made.alt = "";
    made.src = address;
    return made;
  }

  function cardOf(row) {
    const made = cards[row] ??= card(row);
    if (made.label === label || rows[row][ERROR]) return made;
    made.label = label;
    made.lastChild.replaceChildren(...best(row).map(([at, number]) => {
      const line = make("div", at === label ? "value chosen" : "value"), bar = make("i");
      bar.style.width = `${100 * Math.min(1, Math.max(0, (number - low) / (high - low || 1)))}%`;
      line.append(bar, make("span", "", shown(labels[at])), make("span", "", text(number)));
      line.title = `${shown(labels[at])} ${number}`;
      return line;
    }));
    return made;
  }

  // -- where they are

  function sort() {
    sorted = [...rows.keys()];
    // Without a number comes last, whichever way: NaN has no place among numbers.
    const none = (row) => Number(Number.isNaN(value(row)));
    if (order) sorted.sort((a, b) => none(a) - none(b) || order * (value(a) - value(b)) || a - b);
  }

  // Walk the lists beside the order, and move what stands wrong: after a small step of the
  // threshold that is little.
  function* places() {
    let done = 0;
    for (const [number, group] of groups.entries()) {
      let at = group.list.firstChild;
      for (const row of sorted) {
        if (groupOf(row) !== number) continue;
        while (at && groupOf(at.row) !== number) at = at.nextSibling;
        const made = cardOf(row);
        if (made === at) at = at.nextSibling;
        else group.list.insertBefore(made, at);
        if (++done === FIRST || done % AT_ONCE === 0) yield;
      }
    }
  }

  let work = null;
  function place() {
    const focused = document.activeElement?.closest?.("li");
    const mine = work = places();
    const step = () => {
      if (work !== mine) return;
      if (!mine.next().done) requestAnimationFrame(() => setTimeout(step)); // first show those
      else document.documentElement.dataset.placed = rows.length;
      if (focused && document.activeElement === document.body)
        focused.querySelector("input").focus({ preventScroll: true });
      if (!current?.isConnected) settle(groups.map((g) => g.list.firstChild).find(Boolean));
    };
    delete document.documentElement.dataset.placed;
    step();
  }

  function count() {
    const counts = [0, 0, 0];
    for (let row = 0; row < rows.length; row++) counts[groupOf(row)]++;
    const name = shown(labels[label] ?? "");
    const titles = [`${name} ≥ ${threshold}`, `${name} < ${threshold}`, "Without a number"];
    groups.forEach((group, number) => {
      group.title.textContent = `${titles[number]}: ${counts[number].toLocaleString("en")}`;
      group.section.hidden = !counts[number];
    });
  }

  // -- the tools

  const slider = find("slider"), field = find("threshold");

  function range() {
    low = Infinity;
    high = -Infinity;
    for (const row of rows)
      for (const number of Object.values(row[VALUES]))
        if (number !== null) {
          if (number < low) low = number;
          if (number > high) high = number;
        }
    if (low >= 0 && high <= 1) [low, high] = [0, 1];
    if (low > high) [low, high] = [0, 1];
    const step = high - low <= 1 ? 0.01 : 10 ** Math.floor(Math.log10((high - low) / 100));
    low = Number((Math.floor(low / step) * step).toPrecision(12));
    high = Number((Math.ceil(high / step) * step).toPrecision(12));
    for (const input of [slider, field]) Object.assign(input, { min: low, max: high, step });
    field.step = "any";
    threshold = Number(((low + high) / 2).toPrecision(3));
    slider.value = field.value = threshold;
  }

  let soon = 0;
  function moved(to) {
    if (Number.isNaN(to)) return;
    threshold = to;
    count();
    clearTimeout(soon);
    soon = setTimeout(place, 60);
  }
  slider.addEventListener("input", () => {
    field.value = slider.value;
    moved(slider.valueAsNumber);
  });
  field.addEventListener("input", () => {
    slider.value = field.value;
    moved(field.valueAsNumber);
  });
  const ordered = () => {
    label = Number(find("label").value);
    order = Number(find("order").value);
    if (current && !current.contains(document.activeElement)) leave(); // Tab goes to the first
    sort();
    count();
    place();
  };
  find("label").addEventListener("change", ordered);
  find("order").addEventListener("change", ordered);
  find("tools").addEventListener("submit", (event) => event.preventDefault());

  // -- marks

  function mark(row, on) {
    if (on) marked.add(row);
    else marked.delete(row);
    if (cards[row]) cards[row].querySelector("input").checked = on;
  }

  // All between two cards, as they stand.
  function markRange(from, to, on) {
    const shownCards = [...document.querySelectorAll("main li")];
    const [a, b] = [shownCards.indexOf(from), shownCards.indexOf(to)].sort((x, y) => x - y);
    for (const each of shownCards.slice(Math.max(a, 0), b + 1)) mark(each.row, on);
  }

  function toggle(made, on, far) {
    if (far && last?.isConnected) markRange(last, made, on);
    else mark(made.row, on);
    last = made;
    tell();
  }

  function tell(said = "") {
    find("marked").textContent = said || `${marked.size.toLocaleString("en")} marked`;
    find("list").value = [...marked].sort((a, b) => a - b).map((row) => quoted(rows[row][PATH]))
      .join(" ");
    for (const id of ["copy", "clear"]) find(id).disabled = !marked.size;
  }

  const main = find("pictures");
  main.addEventListener("click", (event) => {
    const made = event.target.closest("li");
    if (event.target.matches(".all")) {
      const number = groups.findIndex((g) => g.section.contains(event.target));
      for (const row of rows.keys()) if (groupOf(row) === number) mark(row, true);
      tell();
    } else if (made && event.target.matches("input")) {
      settle(made);
      toggle(made, event.target.checked, event.shiftKey);
    } else if (made && event.shiftKey && event.target.closest("label")) {
      event.preventDefault(); // browsers differ in whether it ticks the box
      settle(made, true);
      toggle(made, !marked.has(made.row), true);
    }
  });
  main.addEventListener("error", (event) => {
    if (event.target.matches("img"))
      event.target.replaceWith(make("span", "picture missing", "cannot be shown here"));
  }, true);

  // -- keys: one card can be reached by Tab, the others from it by arrows

  function leave() {
    if (current) current.querySelector("input").tabIndex = -1;
    current = null;
  }

  function settle(made, focus = false) {
    if (!made) return;
    leave();
    current = made;
    const check = made.querySelector("input");
    check.tabIndex = 0;
    if (focus) check.focus();
  }

  main.addEventListener("focusin", (event) => {
    const made = event.target.closest("li");
    if (made) settle(made);
  });
  main.addEventListener("keydown", (event) => {
    const made = event.target.closest("li");
    if (!made || event.altKey || event.ctrlKey || event.metaKey) return;
    const columns = getComputedStyle(made.parentNode).gridTemplateColumns.split(" ").length;
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns,
      Home: -Infinity, End: Infinity };
    if (event.key in steps) {
      const all = [...document.querySelectorAll("main section:not([hidden]) li")];
      const to = Math.min(all.length - 1, Math.max(0, all.indexOf(made) + steps[event.key]));
      event.preventDefault();
      settle(all[to], true);
    } else if (event.key === "Enter" && event.target.matches("input")) {
      event.preventDefault();
      made.querySelector("a")?.click();
    } else if (event.key === " " && event.shiftKey) {
      event.preventDefault();
      toggle(made, !marked.has(made.row), true);
    }
  });

  // -- the list

  // Quote a path for bash, zsh and other shells that know $'…'. The bytes that are not UTF-8 are
  // lone surrogates here. A name that begins like an option gets ./ in front.
  function quoted(path) {
    const name = path.startsWith("-") && path !== "-" ? `./${path}` : path;
    if (/^[\w@%+=:,./-]+$/.test(name)) return name;
    if (!/[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/u.test(name)) return `'${name.replaceAll("'", "'\\''")}'`;
    let inside = "";
    for (const c of name) {
      const code = c.codePointAt(0);
      const bytes = code >= 0xdc80 && code <= 0xdcff ? [code - 0xdc00] : new TextEncoder().encode(c);
      if (/[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/u.test(c))
        for (const byte of bytes) inside += `\\${byte.toString(8).padStart(3, "0")}`;
      else inside += c === "'" || c === "\\" ? `\\${c}` : c;
    }
    return `$'${inside}'`;
  }

  const list = find("list"), show = find("show");
  function reveal(open) {
    list.hidden = !open;
    show.setAttribute("aria-expanded", open);
    show.textContent = open ? "Hide list" : "Show list";
  }
  show.addEventListener("click", () => reveal(list.hidden));
  list.addEventListener("focus", () => list.select());
  find("clear").addEventListener("click", () => {
    for (const row of [...marked]) mark(row, false);
    tell();
  });
  find("copy").addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(list.value);
    } catch {
      reveal(true);
      list.select();
      if (!document.execCommand("copy")) return tell("Press Ctrl-C to copy the list");
    }
    tell(`${marked.size.toLocaleString("en")} ${marked.size === 1 ? "path" : "paths"} copied`);
  });

  // -- the beginning

  const failed = rows.filter((row) => row[ERROR]).length, answered = rows.length - failed;
  const pictures = `${answered.toLocaleString("en")} ${answered === 1 ? "picture" : "pictures"}`
    + (failed ? `, ${failed.toLocaleString("en")} failed` : "");
  find("total").textContent = pictures;
  document.title = `Contact sheet: ${pictures}`;
  find("label").append(...labels.map((name, at) => new Option(shown(name), at)));
  range();
  sort();
  count();
  place();
  tell();
})();
