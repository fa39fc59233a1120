"""The page in a real browser, at desktop and phone width: what a person reads, clicks and never should see."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dualtail.report.page import write_page

MakeRun = Callable[..., Path]
NASTY = "<script>alert(1)</script>"
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
DRIVER = shutil.which("chromedriver")

if not (CHROMIUM and DRIVER) and not os.environ.get("CI"):
    pytest.skip(
        "no Chromium here; 'apt-get install chromium chromium-driver' brings it", allow_module_level=True
    )

from selenium import webdriver  # noqa: E402
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select, WebDriverWait  # noqa: E402

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
)  # fmt: skip


@pytest.fixture(scope="module")
def run(make_run: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("browser")
    names = [f"class {index:02d}" for index in range(13)] + [
        NASTY,
        "&lt;b&gt; & \"quoted\" 'name'",
        "long " * 30,
    ]
    return make_run(
        base / "run",
        names=names,
        images=base / "images",
        test_per_class=6,
        file_name="{label:04d}/<img src=x onerror=alert(2)>{number}.png",
    )


@pytest.fixture(scope="module")
def page(run: Path) -> Path:
    return write_page([run], run / "report.html")


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    assert CHROMIUM, "CI has no Chromium: install the packages chromium and chromium-driver"
    assert DRIVER, "CI has no chromedriver: install the package chromium-driver"
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    # Whatever a hostile name makes run shows up here.
    watch = "window.alarms = []; window.alert = (text) => window.alarms.push(String(text));"
    driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": watch})
    yield driver
    driver.quit()


class Reader:
    """A person with the page open."""

    def __init__(self, driver: webdriver.Chrome, page: Path, size: str) -> None:
        self.driver, self.page, self.size = driver, page, size
        width, height = SIZES[size]
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == "phone"}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        driver.get("about:blank")
        self.log()
        driver.get(page.as_uri())
        self.wait(lambda: self.js("return !!window.Plotly"))

    def js(self, code: str, *arguments: Any) -> Any:
        return self.driver.execute_script(code, *arguments)

    def wait(self, condition: Callable[[], Any]) -> Any:
        return WebDriverWait(self.driver, 60, poll_frequency=0.05).until(lambda _: condition())

    def find(self, selector: str) -> Any:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def texts(self, selector: str) -> list[str]:
        return self.js(
            "return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent.trim())", selector
        )

    def see(self, selector: str) -> Any:
        """Scroll to something that exists and return it."""
        element = self.find(selector)
        tops: list[float] = []

        def settled() -> bool:
            # Charts that are drawn above it meanwhile push it away.
            scroll = "arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})"
            tops.append(self.js(f"{scroll}; return arguments[0].getBoundingClientRect().top", element))
            return len(tops) > 2 and tops[-1] == tops[-2] == tops[-3]

        self.wait(settled)
        return element

    def draw(self, selector: str) -> Any:
        """Scroll to a chart and wait until it is drawn."""
        figure = self.see(selector)
        self.wait(lambda: self.js("return arguments[0].querySelector('.main-svg') !== null", figure))
        return figure

    def drawer(self) -> str:
        """Return the title of the open class."""
        self.wait(lambda: self.find("#drawer").is_displayed())
        return str(self.find("#drawer-title").get_attribute("textContent"))

    def rows(self) -> list[int]:
        """Return the classes that the table shows, from the top."""
        rows = "[...document.querySelectorAll('.classes tr[data-class]')]"
        return [int(row) for row in self.js(f"return {rows}.map((row) => row.dataset.class)")]

    def sort(self, column: str) -> None:
        self.js("document.querySelector(`.classes th[data-column='${arguments[0]}'] button`).click()", column)

    def click_at(self, x: float, y: float) -> None:
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            event = {"type": kind, "x": x, "y": y, "button": "left", "clickCount": 1}
            self.driver.execute_cdp_cmd("Input.dispatchMouseEvent", event)

    def log(self) -> tuple[list[str], list[str]]:
        """Return the console's messages, and every address that was asked for."""
        console = [f"{entry['level']}: {entry['message']}" for entry in self.driver.get_log("browser")]
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
        return console, [url for url in sent if not url.startswith(("data:", "blob:", "about:"))]


@pytest.fixture(scope="module", params=list(SIZES))
def opened(request: pytest.FixtureRequest, chromium: webdriver.Chrome, page: Path) -> Reader:
    return Reader(chromium, page, request.param)


@pytest.fixture
def reader(opened: Reader) -> Iterator[Reader]:
    """The opened page as at its start; afterwards nothing went wrong in it and it asked for nothing."""
    opened.js("location.hash = '#r0-overview'")
    opened.wait(lambda: not opened.find("#drawer").is_displayed())
    opened.js("document.querySelector('button[name=clear]').click()")
    yield opened
    console, asked = opened.log()
    assert console == []
    assert set(asked) <= {opened.page.as_uri()}
    assert opened.js("return window.alarms") == []


def per_class(run: Path) -> list[dict[str, str]]:
    with open(run / "adjusted/per_class.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_numbers_are_those_of_the_run(reader: Reader, run: Path) -> None:
    metrics = json.loads((run / "adjusted/metrics.json").read_text())
    assert reader.texts("[data-figure='All images']") == [f"{100 * metrics['overall']:.1f}\u2009%"]
    cells = reader.js(
        "return [...document.querySelectorAll('[data-table=groups] tr')].at(-1).querySelectorAll('td')"
    )
    shown = {cell.get_attribute("data-key"): cell for cell in cells}
    for kind in ("d", "p"):
        for name, group in metrics[f"{kind}_groups"].items():
            cell = shown[f"{kind}_{name}"]
            low, high = (f"{100 * bound:.1f}" for bound in group["ci"])
            assert float(cell.get_attribute("data-value")) == group["accuracy"]
            assert cell.get_attribute("textContent") == f"{100 * group['accuracy']:.1f}{low}–{high}"
    assert float(shown["tail_tail"].get_attribute("data-value")) == metrics["tail_tail"]["accuracy"]


def test_every_chart_is_drawn(reader: Reader) -> None:
    total = reader.js("return document.querySelectorAll('figure.chart').length")
    assert total >= 12
    reader.wait(lambda: not reader.texts(".plot.waiting"))
    assert reader.texts(".plot.failed") == []
    assert reader.js("return document.querySelectorAll('figure.chart:has(.main-svg)').length") == total
    # The class that is called like a script is a word of a chart.
    assert NASTY[:15] in " ".join(reader.texts("[data-chart=counts] .xtick"))


def test_nothing_is_wider_than_the_window(reader: Reader) -> None:
    reader.draw("[data-chart=groups]")
    width, _ = SIZES[reader.size]
    assert reader.js("return document.documentElement.scrollWidth") <= width


def test_sort_the_classes(reader: Reader, run: Path) -> None:
    reader.see(".classes")
    classes = per_class(run)
    accuracy = [float(row["adjusted"]) for row in classes]
    # First those that the ensemble is worst on.
    if reader.find(".classes th[data-column=main]").get_attribute("aria-sort") != "ascending":
        reader.sort("main")
    assert [accuracy[index] for index in reader.rows()] == sorted(accuracy)
    reader.sort("train")
    train = [int(row["n_train"]) for row in classes]
    assert [train[index] for index in reader.rows()] == sorted(train, reverse=True)
    reader.sort("train")
    assert [train[index] for index in reader.rows()] == sorted(train)
    assert reader.find(".classes th[data-column=train]").get_attribute("aria-sort") == "ascending"


def test_filter_and_search_the_classes(reader: Reader, run: Path) -> None:
    reader.see(".filters")
    classes = per_class(run)
    tail = {i for i, row in enumerate(classes) if row["d_group"] == row["p_group"] == "few"}
    assert tail
    reader.find("button[name=tail]").click()
    assert set(reader.rows()) == tail
    assert reader.texts("output") == [f"{len(tail)} of {len(classes)} classes"]
    reader.find("button[name=clear]").click()
    Select(reader.find("select[name=d]")).select_by_visible_text("D-Many")
    assert set(reader.rows()) == {i for i, row in enumerate(classes) if row["d_group"] == "many"}
    reader.find("button[name=clear]").click()
    reader.find("input[name=search]").send_keys("SCRIPT")
    assert [classes[index]["name"] for index in reader.rows()] == [NASTY]
    assert reader.texts(".classes tbody th") == [NASTY]


def test_a_chart_leads_to_a_class(reader: Reader, run: Path) -> None:
    figure = reader.draw("[data-chart=counts]")
    bars = figure.find_elements(By.CSS_SELECTOR, ".bars .point path")
    order = sorted(range(len(per_class(run))), key=lambda index: -int(per_class(run)[index]["n_train"]))
    # On a logarithmic axis a bar reaches far below the window: click just below its top.
    box = reader.js("return arguments[0].getBoundingClientRect().toJSON()", bars[2])
    reader.click_at(box["x"] + box["width"] / 2, box["y"] + 10)
    assert reader.drawer() == per_class(run)[order[2]]["name"]
    assert reader.js("return location.hash") == f"#r0-class-{order[2]}"


def test_a_point_leads_to_a_class(reader: Reader, run: Path) -> None:
    figure = reader.draw("[data-scatter=all]")
    points = figure.find_elements(By.CSS_SELECTOR, ".scatterlayer .point")
    assert len(points) >= 16
    ActionChains(reader.driver).move_to_element(points[0]).click().perform()
    assert reader.drawer() in {row["name"] for row in per_class(run)}


def test_one_class(reader: Reader, run: Path) -> None:
    classes = per_class(run)
    index = next(i for i, row in enumerate(classes) if row["name"] == NASTY)
    reader.js("location.hash = `#r0-class-${arguments[0]}`", index)
    assert reader.drawer() == NASTY
    ensemble = next(text for text in reader.texts("#drawer tbody tr") if "ensemble" in text)
    assert f"{100 * float(classes[index]['adjusted']):.1f}" in ensemble
    assert reader.wait(
        lambda: reader.js(
            "const all = [...document.querySelectorAll('#drawer img')];"
            "return all.length >= 3 && all.slice(0, 1).every((image) => image.complete && image.naturalWidth > 0)"
        )
    )
    assert any("onerror" in text for text in reader.texts("#drawer figcaption"))
    links = reader.driver.find_elements(By.CSS_SELECTOR, "#drawer .confused a")
    if links:
        other = links[0].get_attribute("textContent")
        reader.js("arguments[0].click()", links[0])
        reader.wait(lambda: reader.drawer() == other)
    reader.find("body").send_keys(Keys.ESCAPE)
    reader.wait(lambda: not reader.find("#drawer").is_displayed())


def test_overview_leads_to_its_classes(reader: Reader) -> None:
    link = reader.see(".lines a")
    name = link.text
    link.click()
    assert name.startswith(reader.drawer())


def test_dark_and_paper(reader: Reader) -> None:
    reader.draw("[data-chart=counts]")
    color = "return getComputedStyle(document.querySelector('[data-chart=counts] .xtitle')).fill"
    light = reader.js(color)
    features = [{"name": "prefers-color-scheme", "value": "dark"}]
    reader.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    try:
        reader.wait(lambda: reader.js(color) != light)
        pdf = reader.driver.execute_cdp_cmd("Page.printToPDF", {})["data"]
        assert len(pdf) > 50_000
    finally:
        reader.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    reader.wait(lambda: reader.js(color) == light)


def test_several_runs(chromium: webdriver.Chrome, run: Path, make_run: MakeRun, tmp_path: Path) -> None:
    other = make_run(tmp_path / "other", classes=5, test_per_class=4, backbones=["clip"])
    reader = Reader(chromium, write_page([run, other], tmp_path / "page.html"), "desktop")
    assert "2 runs compared" in reader.texts("h1")
    assert not reader.find("#r1").is_displayed()
    reader.see("nav.runs").find_elements(By.TAG_NAME, "a")[1].click()
    reader.wait(lambda: reader.find("#r1").is_displayed())
    assert not reader.find("#r0").is_displayed()
    reader.draw("#r1 [data-chart=counts]")
    assert len(reader.js("return [...document.querySelectorAll('#r1 .classes tr[data-class]')]")) == 5
    assert reader.log()[0] == []


def test_thousands_of_classes_scroll(chromium: webdriver.Chrome, make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(tmp_path / "many", classes=1000, test_per_class=1, val_per_class=1, backbones=["a", "b"])
    page = write_page([run], tmp_path / "page.html")
    assert page.stat().st_size < 5_000_000
    reader = Reader(chromium, page, "desktop")
    reader.see(".window")
    assert len(reader.rows()) < 100
    reader.sort("name")
    reader.sort("name")
    assert reader.rows()[0] in (0, 999)
    reader.js("const box = document.querySelector('.window'); box.scrollTop = box.scrollHeight")
    reader.wait(lambda: {0, 999} & set(reader.rows()[-1:]))
    assert reader.log()[0] == []
