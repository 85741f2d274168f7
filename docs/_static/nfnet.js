// What the theme and Sphinx leave out for people who use a keyboard or a screen reader.
function complete() {
  for (const element of document.querySelectorAll("article :is(pre, p, .table-wrapper, .image-reference)")) {
    if (element.scrollWidth > element.clientWidth && getComputedStyle(element).overflowX === "auto") {
      element.tabIndex = 0; // not every browser lets the keyboard reach what scrolls
    }
  }
  for (const element of document.querySelectorAll(".caption[role=heading]")) {
    element.ariaLevel = "2";
  }
  document.querySelector("aside.sidebar-drawer")?.setAttribute("aria-label", "All pages");
  document.querySelector("aside.toc-drawer")?.setAttribute("aria-label", "On this page");
}

window.addEventListener("load", complete);
window.addEventListener("resize", complete);
