// Use a page in Chromium as a person does, at two widths, and print what it shows.
//
//     node use_page.mjs CHROMIUM URL STEPS.json [FOLDER_FOR_SCREENSHOTS]
//
// STEPS.json is a list of steps: {"fill": SELECTOR, "text": TEXT}, {"press": NAME_OF_BUTTON},
// {"key": KEY, "in": SELECTOR}, {"read": SELECTOR, "until": REGULAR_EXPRESSION}. The output is a JSON
// list with an object for each width: the texts that were read, the errors of the page, the requests
// to other servers, and by how many pixels the page is too wide.
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { chromium } from "playwright-core";

const [executablePath, url, stepsFile, screenshots] = process.argv.slice(2);
const steps = JSON.parse(readFileSync(stepsFile, "utf8"));
const profile = mkdtempSync(join(tmpdir(), "chromium-"));
const context = await chromium.launchPersistentContext(profile, {
  executablePath,
  headless: true,
  args: [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
  ],
});

function textOf(element) {
  const boxes = [...element.querySelectorAll("textarea, input")].map((box) => box.value);
  return [...boxes, element.innerText].join("\n").trim();
}

async function read(page, selector, until) {
  const pattern = new RegExp(until ?? "\\S", "s");
  const end = Date.now() + 60000;
  for (;;) {
    const text = await page.locator(selector).first().evaluate(textOf);
    if (pattern.test(text)) return text;
    if (Date.now() > end) throw new Error(`${selector} shows ${JSON.stringify(text)}`);
    await page.waitForTimeout(50);
  }
}

async function take(page, step, texts) {
  if ("fill" in step) await page.locator(step.fill).first().fill(step.text, { timeout: 60000 });
  if ("press" in step) await page.getByRole("button", { name: step.press, exact: true }).click();
  if ("key" in step) await page.locator(step.in).first().press(step.key);
  if ("read" in step) texts.push(await read(page, step.read, step.until));
}

async function use(width) {
  const page = await context.newPage();
  const errors = [];
  const elsewhere = [];
  const texts = [];
  page.on("console", (message) => message.type() === "error" && errors.push(message.text()));
  page.on("pageerror", (error) => errors.push(String(error)));
  page.on("dialog", (dialog) => dialog.dismiss().then(() => errors.push(dialog.message())));
  page.on("request", (request) => {
    const other = request.url();
    if (!other.startsWith(url) && !/^(data|blob):/.test(other)) elsewhere.push(other);
  });
  await page.setViewportSize({ width, height: 900 });
  await page.goto(url);
  for (const step of steps) await take(page, step, texts);
  if (screenshots) await page.screenshot({ path: join(screenshots, `${width}.png`), fullPage: true });
  const overflow = await page.evaluate(
    () => document.documentElement.scrollWidth - document.documentElement.clientWidth,
  );
  await page.close();
  return { width, texts, errors, elsewhere, overflow };
}

const views = [];
for (const width of [1280, 390]) views.push(await use(width));
await context.close();
rmSync(profile, { recursive: true, force: true });
console.log(JSON.stringify(views));
