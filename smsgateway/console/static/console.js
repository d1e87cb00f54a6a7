// The little that htmx and CSS do not do. No code from attributes, no eval: the page's policy allows neither.
"use strict";

(() => {
  const two = (number) => String(number).padStart(2, "0");

  // Moments in the browser's own time zone; the server's text, in UTC, stays as the title.
  function localize(root) {
    for (const element of root.querySelectorAll("time[datetime]:not([data-local])")) {
      const at = new Date(element.dateTime);
      if (Number.isNaN(at.getTime())) continue;
      element.dataset.local = "";
      element.title = element.textContent;
      element.textContent =
        `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())} ` +
        `${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}`;
    }
  }

  // A form that was sent is not sent again while its answer is awaited; the server counts it once in any case.
  document.addEventListener("submit", (event) => {
    const form = event.target;
    if (form.method !== "post") return;
    if (form.dataset.confirm && !window.confirm(form.dataset.confirm)) {
      event.preventDefault();
      return;
    }
    if (form.dataset.sent !== undefined) event.preventDefault();
    form.dataset.sent = "";
  });
  window.addEventListener("pageshow", () => {
    for (const form of document.querySelectorAll("form[data-sent]")) delete form.dataset.sent;
  });

  document.addEventListener("change", (event) => {
    // What an option brings with it fills other fields: data-fill-price="45.00" goes to the field "price".
    const option = event.target.selectedOptions?.[0];
    if (option) {
      for (const [key, value] of Object.entries(option.dataset)) {
        const field = key.startsWith("fill") && event.target.form?.elements[key.slice(4).toLowerCase()];
        if (field) field.value = value;
      }
    }
    // One box that ticks all others of its table.
    if (event.target.matches("input[data-all]")) {
      for (const box of document.querySelectorAll(`input[name="${event.target.dataset.all}"]`)) {
        box.checked = event.target.checked;
      }
    }
  });

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-copy]");
    if (button) navigator.clipboard?.writeText(document.getElementById(button.dataset.copy).textContent.trim());
  });

  // A page that nobody sees asks for nothing.
  document.addEventListener("htmx:beforeRequest", (event) => {
    if (document.hidden && event.detail.pathInfo.requestPath.includes("live=")) event.preventDefault();
  });
  const lost = (is) => {
    document.getElementById("lost").hidden = !is;
  };
  document.addEventListener("htmx:sendError", () => lost(true));
  document.addEventListener("htmx:responseError", () => lost(true));
  document.addEventListener("htmx:afterSwap", (event) => {
    lost(false);
    localize(event.detail.elt.parentNode ?? document);
  });

  document.addEventListener("DOMContentLoaded", () => localize(document));
  if (document.readyState !== "loading") localize(document);
})();
