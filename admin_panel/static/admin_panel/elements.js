// Custom elements that help with typing. Without them the plain inputs they wrap do the same.
"use strict";

// Proposes names while somebody types: a <datalist> filled from `data-suggest`.
let lists = 0;

function suggestFor(input, url, last = (value) => value) {
  const list = document.createElement("datalist");
  list.id = `suggestions-${++lists}`;
  input.after(list);
  input.setAttribute("list", list.id);
  let asked = 0;
  const ask = async () => {
    const mine = ++asked;
    const answer = await fetch(`${url}?q=${encodeURIComponent(last(input.value))}`, { headers: { Accept: "application/json" } });
    if (!answer.ok || mine !== asked) return;
    const { names } = await answer.json();
    list.replaceChildren(...names.map((name) => Object.assign(document.createElement("option"), { value: name })));
  };
  let timer = 0;
  input.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(ask, 150);
  });
  input.addEventListener("focus", ask, { once: true });
}

class SuggestInput extends HTMLElement {
  connectedCallback() {
    const input = this.querySelector("input");
    if (!input.hasAttribute("list")) suggestFor(input, this.dataset.suggest);
  }
}

// A comma-separated text input as chips. Enter, comma or leaving adds one; Backspace takes the last.
class ChipInput extends HTMLElement {
  connectedCallback() {
    if (this.box) return;
    this.plain = this.querySelector("input");
    this.words = this.plain.value.split(/[\s,]+/).filter(Boolean);
    this.box = document.createElement("div");
    this.box.className = "chip-box";
    if (this.plain.getAttribute("aria-invalid") === "true") this.box.dataset.invalid = "";
    this.typed = document.createElement("input");
    this.typed.type = "text";
    this.typed.autocomplete = "off";
    this.typed.spellcheck = false;
    for (const name of ["aria-describedby", "aria-invalid"]) {
      if (this.plain.hasAttribute(name)) this.typed.setAttribute(name, this.plain.getAttribute(name));
    }
    this.typed.id = this.plain.id; // so that the label belongs to what is shown
    this.plain.removeAttribute("id");
    this.plain.type = "hidden";
    this.box.append(this.typed);
    this.append(this.box);
    this.typed.addEventListener("keydown", (event) => this.onKey(event));
    this.typed.addEventListener("input", (event) => this.onInput(event));
    this.typed.addEventListener("blur", () => this.add(this.typed.value));
    this.box.addEventListener("click", (event) => this.onClick(event));
    if (this.dataset.suggest) suggestFor(this.typed, this.dataset.suggest);
    this.show();
  }

  onKey(event) {
    if (event.key === "Enter" && this.typed.value.trim()) {
      event.preventDefault();
      this.add(this.typed.value);
    } else if (event.key === "Backspace" && !this.typed.value && this.words.length) {
      this.words.pop();
      this.changed();
    }
  }

  onInput(event) {
    const isChosen = event.inputType === "insertReplacementText" || event.inputType === undefined;
    if (isChosen || /[\s,]$/.test(this.typed.value)) this.add(this.typed.value);
  }

  onClick(event) {
    const button = event.target.closest("button");
    if (button) {
      this.words = this.words.filter((word) => word !== button.dataset.word);
      this.changed();
    }
    this.typed.focus();
  }

  add(text) {
    const fresh = text.split(/[\s,]+/).filter((word) => word && !this.words.includes(word));
    this.typed.value = "";
    if (!fresh.length) return;
    this.words.push(...fresh);
    this.changed();
  }

  changed() {
    this.plain.value = this.words.join(", ");
    this.show();
    this.plain.dispatchEvent(new Event("change", { bubbles: true }));
  }

  show() {
    for (const chip of this.box.querySelectorAll(".chip")) chip.remove();
    this.typed.placeholder = this.words.length ? "" : this.dataset.placeholder ?? "";
    this.typed.before(...this.words.map((word) => this.chip(word)));
  }

  chip(word) {
    const chip = document.createElement("span");
    chip.className = "chip mono";
    const button = document.createElement("button");
    button.type = "button";
    button.dataset.word = word;
    button.setAttribute("aria-label", `Remove ${word}`);
    button.textContent = "×";
    chip.append(word === "*" ? "* all" : word, button);
    return chip;
  }
}

// Weights of versions: slider and number move together; bar, shares and total follow.
class WeightSplit extends HTMLElement {
  connectedCallback() {
    this.addEventListener("input", (event) => this.onInput(event));
    this.saved = this.current();
    this.top = 100;
    this.show();
  }

  inputs() {
    return [...this.querySelectorAll("[data-weight]")];
  }

  current() {
    return this.inputs().map((input) => input.value).join();
  }

  onInput({ target }) {
    const { range, weight } = target.dataset;
    if (range) this.querySelector(`[data-weight="${range}"]`).value = target.value;
    this.show();
    // Only now: a slider takes no value beyond the top that it has just been given.
    if (weight) this.querySelector(`[data-range="${weight}"]`).value = target.value;
  }

  show() {
    const inputs = this.inputs();
    const weights = inputs.map((input) => Math.max(0, Math.min(10000, Number.parseInt(input.value, 10) || 0)));
    const total = weights.reduce((sum, weight) => sum + weight, 0);
    // Weights go up to 10,000; the sliders reach as far as the largest has been, so that small ones stay apart.
    this.top = Math.max(this.top, ...weights);
    for (const range of this.querySelectorAll("[data-range]")) range.max = String(this.top);
    let offset = 0;
    inputs.forEach((input, index) => {
      const share = total ? (100 * weights[index]) / total : 0;
      const bar = this.querySelector(`rect[data-version="${input.dataset.weight}"]`);
      bar.setAttribute("x", `${offset}%`);
      bar.setAttribute("width", `${share}%`);
      offset += share;
      this.querySelector(`[data-share="${input.dataset.weight}"]`).textContent =
        share > 0 && share < 1 ? "< 1 %" : `${Math.round(share)} %`;
    });
    this.querySelector("[data-total]").textContent = String(total);
    this.querySelector("[data-zero]").hidden = total > 0;
    this.querySelector("[data-save]").disabled = this.current() === this.saved;
  }
}

// Shows what belongs to the chosen radio button or option (`data-panel` names one or several) and hides the others.
class ChoicePanels extends HTMLElement {
  connectedCallback() {
    this.addEventListener("change", () => this.show());
    this.show();
  }

  show() {
    const { name } = this.dataset;
    const chosen = this.querySelector(`input[name="${name}"]:checked, select[name="${name}"]`)?.value;
    for (const panel of this.querySelectorAll("[data-panel]")) {
      panel.hidden = !panel.dataset.panel.split(" ").includes(chosen);
    }
  }
}

// A part of a form that counts only while its first checkbox is ticked.
class FoldPart extends HTMLElement {
  connectedCallback() {
    this.switch = this.querySelector("input[type=checkbox]");
    this.fold = this.querySelector("[data-fold]");
    this.switch.setAttribute("aria-expanded", "true");
    this.switch.addEventListener("change", () => this.show());
    this.show();
  }

  show() {
    const isWrong = this.fold.querySelector(".field-error") !== null;
    this.fold.hidden = !this.switch.checked && !isWrong;
    this.switch.setAttribute("aria-expanded", String(!this.fold.hidden));
  }
}

// Rows of inputs, one for each entry of a list: added from the <template>, removed by their button.
class RowList extends HTMLElement {
  connectedCallback() {
    if (this.template) return;
    this.template = this.querySelector("template");
    this.addEventListener("click", (event) => this.onClick(event));
    this.addEventListener("change", (event) => this.onChange(event));
    for (const select of this.querySelectorAll("[data-row] select")) this.fit(select);
  }

  onClick(event) {
    const button = event.target.closest("button");
    if (!button) return;
    if ("rowAdd" in button.dataset) {
      const row = this.template.content.firstElementChild.cloneNode(true);
      this.template.before(row);
      row.querySelector("input").focus();
    } else if ("rowRemove" in button.dataset) {
      const row = button.closest("[data-row]");
      const next = row.nextElementSibling?.querySelector("[data-row-remove]") ?? this.querySelector("[data-row-add]");
      row.remove();
      next.focus();
    }
  }

  onChange({ target }) {
    if (target.matches("select")) this.fit(target);
  }

  // "is there" is compared with nothing.
  fit(select) {
    const value = select.nextElementSibling;
    value.readOnly = ["present", "absent"].includes(select.value);
    if (value.readOnly) value.value = "";
  }
}

customElements.define("fold-part", FoldPart);
customElements.define("row-list", RowList);
customElements.define("suggest-input", SuggestInput);
customElements.define("chip-input", ChipInput);
customElements.define("weight-split", WeightSplit);
customElements.define("choice-panels", ChoicePanels);
