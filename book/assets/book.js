/* What the theme leaves open: boxes that scroll, figures that enlarge, a search without a server.
   Everything reads without it. */
(() => {
  "use strict";

  // A page opened from disk may fetch no other, and the search fetches each page that it found to
  // show a part of it.
  if (location.protocol === "file:" && typeof DOCUMENTATION_OPTIONS !== "undefined") {
    DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
  }

  // -- boxes that scroll: tables, formulas ------------------------------------------------------

  const FORMULA = 'mjx-container[display="true"]';
  const BOXES = `.pst-scrollable-table-container, ${FORMULA}, p`;

  const name = (box) => {
    if (box.matches(FORMULA)) return "Formula";
    const caption = box.querySelector("caption");
    const section = box.closest("section");
    const heading = section && section.querySelector("h1, h2, h3, h4, h5, h6");
    const text = caption ? caption.innerText : heading ? heading.firstChild.textContent : "";
    return `Table: ${text.replace(/\s+/g, " ").trim()}`;
  };

  // A box whose content is wider than itself takes the focus, so that the arrow keys scroll it, and
  // fades at the edge where there is more.
  const fit = (box) => {
    const over = box.scrollWidth - box.clientWidth;
    const wide = over > 1;
    box.classList.toggle("more-left", wide && box.scrollLeft > 1);
    box.classList.toggle("more-right", wide && box.scrollLeft < over - 1);
    if (wide === (box.tabIndex === 0)) return;
    if (!wide) {
      for (const attribute of ["tabindex", "role", "aria-label"]) box.removeAttribute(attribute);
      return;
    }
    box.tabIndex = 0;
    if (box.matches("p")) return; // stays a paragraph
    box.setAttribute("role", box.matches(FORMULA) ? "group" : "region");
    box.setAttribute("aria-label", name(box));
  };

  const watchBoxes = () => {
    const watch = new ResizeObserver((seen) => {
      for (const { target } of seen) {
        const box = target.closest(BOXES);
        if (box) fit(box);
      }
    });
    for (const box of document.querySelectorAll(`.bd-article :is(${BOXES})`)) {
      box.addEventListener("scroll", () => fit(box), { passive: true });
      watch.observe(box);
      if (box.firstElementChild) watch.observe(box.firstElementChild);
    }
  };

  // In such a box, and in a wide block of code, the arrows scroll: they do not turn the page.
  addEventListener(
    "keydown",
    (event) => {
      const at = event.target;
      const inside = at instanceof Element && at.tabIndex === 0 && at.closest(".bd-article");
      const arrow = event.key === "ArrowLeft" || event.key === "ArrowRight";
      if (arrow && inside && at.matches(`${BOXES}, pre`)) event.stopPropagation();
    },
    true,
  );

  // -- figures that enlarge ---------------------------------------------------------------------

  // A link to the image, so that it opens without a script's help in a tab of its own as well. The
  // dialog closes on Escape and gives the focus back by itself.
  const enlarge = () => {
    const dialog = document.createElement("dialog");
    dialog.className = "enlarged";
    dialog.setAttribute("aria-label", "Figure, enlarged");
    dialog.innerHTML =
      '<form method="dialog"><button>Close</button></form><div tabindex="0"></div>';
    document.body.append(dialog);
    const sheet = dialog.querySelector("div");
    dialog.addEventListener("click", (event) => {
      if (event.target === dialog) dialog.close();
    });
    for (const image of document.querySelectorAll(
      ".bd-article :is(figure, .cell_output) img:not(.probe-explorer img, a img)",
    )) {
      const link = document.createElement("a");
      link.className = "enlarge";
      link.href = image.src;
      link.title = "Enlarge";
      const shown = image.closest("picture") || image;
      shown.replaceWith(link);
      link.append(shown);
      link.addEventListener("click", (event) => {
        if (event.ctrlKey || event.metaKey || event.shiftKey) return;
        event.preventDefault();
        sheet.replaceChildren(image.cloneNode());
        dialog.showModal();
      });
    }
  };

  // -- paper is light ---------------------------------------------------------------------------

  const root = document.documentElement;
  let theme;
  addEventListener("beforeprint", () => {
    theme = root.dataset.theme;
    root.dataset.theme = "light";
  });
  addEventListener("afterprint", () => {
    root.dataset.theme = theme;
  });

  addEventListener("DOMContentLoaded", () => {
    enlarge();
    const typeset = window.MathJax && MathJax.startup && MathJax.startup.promise;
    Promise.resolve(typeset).then(watchBoxes);
  });
})();
