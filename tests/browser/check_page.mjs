// Open a page in Chromium at two widths, in light and in dark, and print what is wrong with it.
//
//     node check_page.mjs CHROMIUM PAGE.html [FOLDER_FOR_SCREENSHOTS]
//
// The output is a JSON list with an object for each view: violations and the number of passes of
// axe-core, errors of the page, requests, by how many pixels the page is too wide, and the names of the
// parts that do not fit and are scrolled.
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { chromium } from "playwright-core";

const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const [executablePath, pageFile, screenshots] = process.argv.slice(2);
const profile = mkdtempSync(join(tmpdir(), "chromium-"));
const context = await chromium.launchPersistentContext(profile, {
  executablePath,
  headless: true,
  args: [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
  ],
});

function describe({ id, help, nodes }) {
  const where = nodes.slice(0, 3).map((node) => `${node.target.join(" ")} ${node.failureSummary}`);
  return `${id}: ${help}: ${where.join(" | ")}`;
}

async function view(width, colorScheme) {
  const page = await context.newPage();
  const errors = [];
  const requests = [];
  page.on("console", (message) => message.type() === "error" && errors.push(message.text()));
  page.on("pageerror", (error) => errors.push(String(error)));
  page.on("dialog", (dialog) => {
    errors.push(`dialog: ${dialog.message()}`);
    dialog.dismiss();
  });
  page.on("request", (request) => requests.push(request.url()));
  await page.setViewportSize({ width, height: 900 });
  await page.emulateMedia({ colorScheme });
  await page.goto(pathToFileURL(pageFile).href);
  if (screenshots) {
    const path = join(screenshots, `${width}-${colorScheme}.png`);
    await page.screenshot({ path, fullPage: true });
  }
  await page.evaluate(() => document.querySelectorAll("details").forEach((each) => (each.open = true)));
  const overflow = await page.evaluate(
    () => document.documentElement.scrollWidth - document.documentElement.clientWidth,
  );
  const scrolled = await page.evaluate(() =>
    [...document.querySelectorAll(".scroll")]
      .filter((each) => each.scrollWidth > each.clientWidth)
      .map((each) => each.getAttribute("aria-label")),
  );
  const background = await page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  await page.evaluate(axe);
  const found = await page.evaluate(() => window.axe.run(document));
  await page.close();
  const violations = found.violations.map(describe);
  return {
    width, colorScheme, overflow, scrolled, background, violations, errors, requests,
    passes: found.passes.map(({ id }) => id),
  };
}

const views = [];
for (const width of [360, 1280]) {
  for (const colorScheme of ["light", "dark"]) views.push(await view(width, colorScheme));
}
await context.close();
rmSync(profile, { recursive: true, force: true });
console.log(JSON.stringify(views));
