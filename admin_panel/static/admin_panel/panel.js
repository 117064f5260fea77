// The shell's behaviour: theme, dialogs, focus after swaps, copying, toasts, keyboard. Everything is delegated from
// the document, so it holds for whatever htmx swaps in.
"use strict";

const all = (selector, root = document) => [...root.querySelectorAll(selector)];

const store = {
  get(name) {
    try { return localStorage.getItem(name); } catch { return null; }
  },
  set(name, value) {
    try { localStorage.setItem(name, value); } catch { /* storage is switched off: the choice lasts as long as the page */ }
  },
};

// Theme: Tabler's own script in the head has set the stored one before the first paint. ---------------------------
function showThemeChoice() {
  const chosen = store.get("tabler-theme") ?? "auto";
  for (const button of all("[data-theme-choice]")) {
    button.setAttribute("aria-pressed", String(button.dataset.themeChoice === chosen));
  }
}

function chooseTheme(choice) {
  store.set("tabler-theme", choice);
  const isDark = choice === "dark" || (choice === "auto" && matchMedia("(prefers-color-scheme: dark)").matches);
  if (isDark) document.documentElement.setAttribute("data-bs-theme", "dark");
  else document.documentElement.removeAttribute("data-bs-theme");
  showThemeChoice();
}

// Dialogs: a swapped-in <dialog data-modal> opens; "sticky" ones close by their own button only. -----------------
let openedFrom = null;

function openDialogs(root) {
  for (const dialog of all("dialog[data-modal]", root)) {
    if (dialog.matches(":modal")) continue;
    dialog.removeAttribute("open");
    dialog.showModal();
    (dialog.querySelector("[data-focus]") ?? dialog.querySelector("button, input"))?.focus();
  }
}

function closeDialogs() {
  const slot = document.getElementById("dialog-slot");
  if (slot?.firstElementChild) slot.replaceChildren();
}

function leaveDialog(dialog) {
  dialog.close();
  closeDialogs();
  if (openedFrom?.isConnected) openedFrom.focus();
}

document.addEventListener("keydown", (event) => {
  // Escape never closes a sticky dialog, not even pressed twice.
  if (event.key === "Escape" && document.querySelector('dialog[data-modal="sticky"]:modal')) event.preventDefault();
}, true);

document.addEventListener("cancel", (event) => {
  if (event.target.matches?.('dialog[data-modal="sticky"]')) event.preventDefault();
}, true);

document.addEventListener("close", (event) => {
  if (event.target.matches?.("#dialog-slot dialog")) leaveDialog(event.target);
}, true);

// Copying: the clipboard API exists on https and localhost only. ---------------------------------------------------
async function copy(button) {
  const source = document.querySelector(button.dataset.copy);
  const text = source.value ?? source.textContent;
  if (!(await copyText(text, source))) return;
  button.dataset.copied = "";
  const label = button.querySelector("[data-copy-label]");
  if (label) label.textContent = "Copied";
  if ("copyUnlocks" in button.dataset) unlock(button.closest("dialog"), true);
  setTimeout(() => {
    delete button.dataset.copied;
    if (label) label.textContent = "Copy";
  }, 2000);
}

async function copyText(text, source) {
  if (navigator.clipboard) {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch { /* not allowed here: the old way */ }
  }
  if (source.select) source.select();
  else getSelection().selectAllChildren(source);
  return document.execCommand("copy");
}

function unlock(dialog, isUnlocked) {
  for (const button of all("[data-locked]", dialog)) button.disabled = !isUnlocked;
}

// Toasts ------------------------------------------------------------------------------------------------------------
function letToastsGo(root) {
  for (const toast of all("[data-toast]", root)) {
    if (toast.dataset.toastSeen !== undefined) continue;
    toast.dataset.toastSeen = "";
    if (toast.dataset.toastStays !== undefined) continue;
    const go = () => (toast.matches(":hover, :focus-within") ? setTimeout(go, 2000) : toast.remove());
    setTimeout(go, 6000);
  }
}

function toast(text) {
  const template = document.getElementById("toast-template");
  const card = template.content.firstElementChild.cloneNode(true);
  card.querySelector("p").textContent = text;
  document.getElementById("toasts").append(card);
  letToastsGo(document);
}

// Keyboard ----------------------------------------------------------------------------------------------------------
const shortcutsOn = () => store.get("portcullis-shortcuts") !== "off";
let pressedG = 0;

function isTyping(target) {
  return target.closest("input, textarea, select, [contenteditable], dialog") !== null;
}

function onShortcut(event) {
  if (!shortcutsOn() || event.ctrlKey || event.metaKey || event.altKey || isTyping(event.target)) return;
  if (document.querySelector("dialog:modal")) return;
  const follow = performance.now() - pressedG < 1500 && document.querySelector(`[data-go="${CSS.escape(event.key)}"]`);
  pressedG = event.key === "g" ? performance.now() : 0;
  if (follow) {
    event.preventDefault();
    follow.click();
  } else if (event.key === "/") {
    const search = document.querySelector("[data-search]");
    if (!search) return;
    event.preventDefault();
    search.select();
    search.focus();
  } else if (event.key === "?") {
    event.preventDefault();
    showShortcuts();
  }
}

function showShortcuts() {
  const dialog = document.getElementById("shortcuts");
  dialog.querySelector("[data-shortcuts-switch]").checked = shortcutsOn();
  dialog.showModal();
}

document.addEventListener("keydown", onShortcut);

// Clicks and ticks --------------------------------------------------------------------------------------------------
document.addEventListener("click", (event) => {
  const target = event.target.closest("button, a");
  if (!target) return;
  if (target.dataset.themeChoice) chooseTheme(target.dataset.themeChoice);
  if (target.dataset.copy) copy(target);
  if ("toastClose" in target.dataset) target.closest("[data-toast]").remove();
  if ("dialogClose" in target.dataset) leaveDialog(target.closest("dialog"));
  if ("showShortcuts" in target.dataset) showShortcuts();
  if (target.getAttribute("hx-target") === "#dialog-slot") openedFrom = target;
  if (target.classList.contains("nav-item")) closeSidebar();
});

// Searching happens while typing. The change event that follows when the field is left would only search again.
document.addEventListener("change", (event) => {
  if ("search" in event.target.dataset) event.stopPropagation();
}, true);

document.addEventListener("change", (event) => {
  if ("unlocks" in event.target.dataset) unlock(event.target.closest("dialog"), event.target.checked);
  if ("shortcutsSwitch" in event.target.dataset) store.set("portcullis-shortcuts", event.target.checked ? "on" : "off");
});

function closeSidebar() {
  const sidebar = document.getElementById("sidebar");
  if (sidebar?.classList.contains("show")) sidebar.querySelector(".sidebar-close").click();
}

// htmx --------------------------------------------------------------------------------------------------------------
document.addEventListener("htmx:configRequest", (event) => {
  // No `?q=&state=` in addresses.
  if (event.detail.verb !== "get") return;
  for (const [name, value] of [...event.detail.formData]) if (value === "") event.detail.formData.delete(name);
});

document.addEventListener("htmx:confirm", (event) => {
  // A second press on a form's button must not save twice.
  const { elt, verb } = event.detail;
  if (verb === "post" && elt.classList.contains("htmx-request")) event.preventDefault();
});

// Of two links followed in haste the later counts: the page that the earlier asked for would take the later away.
let awaited = null;

document.addEventListener("htmx:beforeRequest", ({ detail: { target, xhr } }) => {
  if (target.id === "main") awaited = xhr;
});

const isPoll = ({ elt, triggeringEvent }) => !triggeringEvent && /\bevery\b/.test(elt.getAttribute("hx-trigger") ?? "");

document.addEventListener("htmx:beforeRequest", (event) => {
  if (document.hidden && isPoll(event.detail.requestConfig)) event.preventDefault();
});

document.addEventListener("htmx:beforeSwap", (event) => {
  const { target, requestConfig, xhr } = event.detail;
  // A list is not replaced under somebody's hands: not by a poll while the focus is in it, nor by anything while a
  // link in it waits for its answer, which would find neither itself nor its target any more.
  const isAwaited = all(".htmx-request", target).some((element) => element !== requestConfig.elt);
  // A heading that has the focus because its page has just come holds nothing.
  const focused = document.activeElement;
  const isHeld = isPoll(requestConfig) && target.contains(focused) && focused.tagName !== "H1";
  if (target.id === "main" ? xhr !== awaited : isAwaited || isHeld) event.detail.shouldSwap = false;
  // Problem documents are for programs: show their sentence, keep the page.
  const type = xhr.getResponseHeader("Content-Type") ?? "";
  if (!type.includes("json")) return;
  event.detail.shouldSwap = false;
  let problem = {};
  try { problem = JSON.parse(xhr.responseText); } catch { /* the status says enough */ }
  toast(problem.detail ?? `The panel answered ${xhr.status}.`);
});

document.addEventListener("htmx:sendError", () => {
  const notice = document.getElementById("notice");
  if (notice && !notice.firstElementChild) {
    notice.replaceChildren(document.getElementById("unreachable-template").content.cloneNode(true));
  }
});

document.addEventListener("htmx:afterRequest", (event) => {
  if (event.detail.xhr.status) all("#notice [data-unreachable]").forEach((bar) => bar.remove());
});

document.addEventListener("htmx:afterSwap", (event) => {
  const { target } = event.detail;
  if (target?.id === "main") {
    closeDialogs();
    focusPage(target);
  }
});

document.addEventListener("htmx:load", (event) => {
  openDialogs(event.detail.elt.parentElement ?? document);
  letToastsGo(document);
});

document.addEventListener("htmx:historyRestore", () => {
  showThemeChoice();
  focusPage(document.getElementById("main"));
});

// After a page change the focus goes where reading goes on: the first wrong field, else the page's heading.
function focusPage(main) {
  if (main.querySelector("dialog[data-modal]")) return;
  const first = main.querySelector("[data-focus], [aria-invalid='true'], [autofocus]") ?? main.querySelector("h1");
  first?.focus({ preventScroll: first.tagName === "H1" });
}

showThemeChoice();
openDialogs(document);
letToastsGo(document);
