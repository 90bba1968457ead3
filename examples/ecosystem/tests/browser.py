#!/usr/bin/env python3
"""Looks at the pages of the examples `axum`, `web` and `inspect` in headless Chromium.

Usage: browser.py AXUM WEB INSPECT [FOLDER]: the programs, and a folder for the screenshots.

The script needs chromium and chromedriver, which speaks WebDriver over HTTP, and Python's library alone. It asserts on the
pixels of its screenshots: at the place that the DOM reports for an element there must be its colour, and its text.
"""

import base64
import json
import os
import re
import signal
import struct
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zlib

PATIENCE = 60  # Seconds. Only a hang takes so long.
OWN, OWN_TEXT = (0x12, 0x57, 0xB5), (0xFF, 0xFF, 0xFF)
OTHER = {"light": (0xE1, 0xE6, 0xEC), "dark": (0x2B, 0x31, 0x38)}
OTHER_TEXT = {"light": (0x1A, 0x1D, 0x21), "dark": (0xE8, 0xEA, 0xED)}
PAGE = {"light": (0xF6, 0xF7, 0xF9), "dark": (0x14, 0x17, 0x1A)}
CARD = {"light": (0xFF, 0xFF, 0xFF), "dark": (0x1B, 0x1F, 0x24)}


def main():
    axum, web, inspect = sys.argv[1:4]
    shots = sys.argv[4] if len(sys.argv) > 4 else None
    with tempfile.TemporaryDirectory() as folder, Driver(folder, shots) as driver:
        chat(driver, axum)
        index(driver, web, folder)
        for tasks in (10, 100_000):
            live_page(driver, inspect, tasks)
        click_during_round(driver, inspect)
        page_without_server(driver, inspect)
    print("browser: all pages are as they must be")


def chat(driver, program):
    """A message that one window sends is a bubble in both, in light and in dark. The end of the server is shown."""
    with Server(program, ["127.0.0.1:0"]) as server:
        bird, tern = Window(driver, "light", 480, 640), Window(driver, "dark", 480, 640)
        for window, name in [(bird, "kittiwake"), (tern, "tern")]:
            window.open(server.url)
            window.until("return document.getElementById('state').textContent === 'connected'")
            window.type("#name", "\ue009a\ue000" + name)  # Control and A select what is there.
        bird.type("#text", "héllo from the cliff \u2602\n")
        tern.until("return document.querySelectorAll('li').length === 1")
        tern.type("#text", "<b>no markup</b>, and a line that is too long for one row of the bubble\n")
        for window in (bird, tern):
            window.until("return document.querySelectorAll('li').length === 2")
            texts = window.run("return [...document.querySelectorAll('li p')].map(said => said.textContent)")
            assert texts[0] == "héllo from the cliff \u2602" and texts[1].startswith("<b>no markup</b>"), texts
        check_chat(bird, own=0, shot="chat-light")
        check_chat(tern, own=1, shot="chat-dark")
        server.terminate()
        bird.until("return document.getElementById('state').textContent === 'not connected: the server ends'")
        assert bird.run("return document.querySelector('button').disabled"), "a page without its server sends nothing"
        report = server.ended()
    assert ", 0 failed, 0 panicked, 0 open" in report, report
    with Server(program, [server.address]):
        # The page connects again. The new server has no messages.
        bird.until("return document.getElementById('state').textContent === 'connected'")
        bird.until("return document.querySelectorAll('li').length === 0")
    bird.expect_clean_console(allowed="WebSocket connection to")
    tern.expect_clean_console(allowed="WebSocket connection to")
    bird.close()
    tern.close()


def check_chat(window, own, shot):
    image = window.screenshot(shot)
    bubbles = window.run("return [...document.querySelectorAll('li p')].map(said => said.getBoundingClientRect())")
    width = window.run("return document.documentElement.clientWidth")
    assert image.pixel(3, image.height - 3) == PAGE[window.scheme], f"{shot}: the page has another colour"
    for at, bubble in enumerate(bubbles):
        colours = (OWN, OWN_TEXT) if at == own else (OTHER[window.scheme], OTHER_TEXT[window.scheme])
        image.expect_text_on(bubble, *colours, f"{shot}: message {at}")
        left, right = bubble["left"], width - bubble["right"]
        assert (left > right) == (at == own), f"{shot}: message {at} is on the wrong side: {left} and {right} are free"
    fits = window.run("return document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert fits, f"{shot}: the page is wider than its window"
    button = window.run("return document.querySelector('button').getBoundingClientRect()")
    image.expect_text_on(button, OWN, OWN_TEXT, f"{shot}: the button")


def index(driver, program, folder):
    """The index page of a folder comes with its style sheet, its picture and its script, each by its content type."""
    site = os.path.join(folder, "site")
    os.mkdir(site)
    files = {
        "index.html": '<!doctype html><meta charset="utf-8"><title>Index</title><link rel="icon" href="data:,">'
        '<link rel="stylesheet" href="page.css"><h1>Kittiwakes nest on cliffs</h1><img src="red.svg" alt="red">'
        '<script src="page.js"></script>',
        "page.css": "body { margin: 20px; background: #204060 } h1 { background: #ffcc00; color: #000000 }",
        "red.svg": '<svg xmlns="http://www.w3.org/2000/svg" width="100" height="50"><rect width="100" height="50"'
        ' fill="#cc0022"/></svg>',
        "page.js": "document.title = 'ran'",
    }
    for name, text in files.items():
        with open(os.path.join(site, name), "w", encoding="utf-8") as file:
            file.write(text)
    with Server(program, [site, "127.0.0.1:0"]) as server:
        window = Window(driver, "light", 480, 320)
        window.open(server.url)
        window.until("return document.title === 'ran' && document.querySelector('img').complete")
        image = window.screenshot("web-index")
        rect = "return document.querySelector('{}').getBoundingClientRect()".format
        image.expect_text_on(window.run(rect("h1")), (0xFF, 0xCC, 0x00), (0, 0, 0), "web-index: the heading")
        picture = window.run(rect("img"))
        found = image.pixel(picture["left"] + 50, picture["top"] + 25)
        assert found == (0xCC, 0x00, 0x22), f"web-index: the picture has the colour {found}"
        assert image.pixel(3, 3) == (0x20, 0x40, 0x60), "web-index: the page has another colour"
        window.expect_clean_console()
        window.close()
        server.terminate()
        report = server.ended()
    assert ", 0 failed, 0 panicked, 0 open" in report, report


def live_page(driver, program, tasks):
    """The live page fits its window, is readable, and lists the tasks of a line, a hundred at a time."""
    with Server(program, ["--tasks", str(tasks), "127.0.0.1:0"]) as server:
        for scheme in ("light", "dark"):
            for width, height in ((1280, 1000), (400, 800)):
                window = Window(driver, scheme, width, height)
                window.open(server.url)
                check_live_page(window, tasks, f"inspect-{scheme}-{width}-{tasks}")
                window.expect_clean_console()
                window.close()
        server.terminate()
        report = server.ended()
    # A window that closes during a response is a failed connection.
    assert ", 0 panicked, 0 open" in report, report


def check_live_page(window, tasks, shot):
    rows = "return document.querySelectorAll('#{} tbody tr').length".format
    window.until("return document.getElementById('state').className === 'live'")
    assert window.run(rows("workers")) == 2, f"{shot}: the program has two workers"
    # The charts have two points once there are three snapshots.
    window.until("return (document.querySelector('.curve').getAttribute('d') || '').includes('L')")
    names = window.run("return [...document.querySelectorAll('#sites button.code')].map(name => name.title)")
    assert all("inspect.rs:" in name or "src/" in name for name in names), f"{shot}: these are no lines: {names}"
    # The tasks that sleep are those that wait for a timer and for nothing else.
    group = "[...document.querySelectorAll('#sites .group')].find(group => /^[\\d,]+ on a timer$/.test(group.textContent))"
    count = window.run(f"return {group}.textContent")
    assert int(count.split()[0].replace(",", "")) >= min(tasks, 10), f"{shot}: {count}"
    window.run(f"{group}.click()")
    window.until(rows("tasks") + f" === {min(tasks, 100)}")
    waits = window.run("return [...document.querySelectorAll('#tasks tbody tr')].map(row => row.cells[2].textContent)")
    assert all(wait.startswith("a timer") for wait in waits), f"{shot}: not all wait for a timer: {waits}"
    image = window.screenshot(shot)
    assert image.pixel(3, image.height - 3) == PAGE[window.scheme], f"{shot}: the page has another colour"
    text, ground, card = OTHER_TEXT[window.scheme], PAGE[window.scheme], CARD[window.scheme]
    rect = "return document.querySelector('{}').getBoundingClientRect()".format
    image.expect_text_on(window.run(rect("h1")), ground, text, f"{shot}: the name of the program")
    image.expect_text_on(window.run(rect("figure output")), card, text, f"{shot}: the first figure")
    fits = window.run("return document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert fits, f"{shot}: the page is wider than its window"
    if tasks > 100:
        first = "document.querySelector('#tasks tbody tr').cells[0].textContent"
        before = window.run(f"return {first}")
        window.run("document.getElementById('tasks-on').click()")
        window.until(f"return document.getElementById('chosen-range').textContent.startsWith('101–200') && {first} !== '{before}'")
    shown = window.run("return document.querySelectorAll('tr').length")
    assert shown < 500, f"{shot}: the page has {shown} rows"
    window.run("document.getElementById('chosen').scrollIntoView()")
    window.screenshot(shot + "-tasks")
    window.run("document.getElementById('sockets').scrollIntoView({block: 'end'})")
    window.screenshot(shot + "-sockets")
    window.run("document.getElementById('tasks-close').click()")
    window.until("return document.getElementById('chosen').hidden")


def click_during_round(driver, program):
    """A line that is clicked while the tasks of another one are on their way gets its own tasks, and never the others."""
    with Server(program, ["--tasks", "10", "127.0.0.1:0"]) as server:
        window = Window(driver, "light", 1280, 1000)
        window.open(server.url)
        window.until("return document.querySelectorAll('#sites button.code').length > 1")
        first, second = window.run("return [...document.querySelectorAll('#sites button.code')].map(name => name.title)")[:2]
        click = "[...document.querySelectorAll('#sites button.code')].find(name => name.title === {}).click()".format
        # Holds the first answer with tasks back, and notes whether all that is shown belongs to the line that is chosen.
        window.run("""
            const [request, showAll] = [fetch, showTasks];
            [window.shown, window.release] = [[], null];
            showTasks = page => {
                if (page) shown.push(page.tasks.every(task => task.site === view.site));
                showAll(page);
            };
            fetch = (url, options) => release || !url.includes("api/tasks") ? request(url, options)
                : new Promise(answer => { window.release = () => answer(request(url, options)); });
        """)
        window.run(click(json.dumps(first)))
        window.until("return release !== null")
        window.run(click(json.dumps(second)) + "; release()")
        window.until(f"return shown.length > 0 && document.getElementById('chosen-site').textContent === {json.dumps(second)}")
        assert window.run("return shown.every(belongs => belongs)"), f"tasks of {first} were shown as those of {second}"
        window.expect_clean_console()
        window.close()
        server.terminate()
        server.ended()


def page_without_server(driver, program):
    """The live page stands still when it is paused, says that its server is gone, and goes on with the next server."""
    with Server(program, ["127.0.0.1:0"]) as server:
        window = Window(driver, "light", 1280, 1000)
        window.open(server.url)
        window.until("return document.getElementById('state').className === 'live'")
        window.run("document.getElementById('pause').click()")
        window.until("return document.getElementById('state').className === 'paused'")
        before = window.run("return document.getElementById('workers').textContent")
        time.sleep(5)
        assert window.run("return document.getElementById('workers').textContent") == before, "a paused page changes"
        window.run("document.getElementById('pause').click()")
        window.until(f"return document.getElementById('workers').textContent !== {json.dumps(before)}")
        server.terminate()
        server.ended()
        window.until("return document.getElementById('gone').textContent.includes('has not answered')")
        window.screenshot("inspect-gone")
    with Server(program, [server.address]) as second:
        pid = second.process.pid
        window.until(f"return document.getElementById('about').textContent.includes('process {pid} ')")
        window.until("return document.getElementById('gone').hidden")
    window.expect_clean_console(allowed="Failed to load resource")
    window.close()


class Server:
    """An example that serves. It ends with the block."""

    def __init__(self, program, args):
        self.process = subprocess.Popen([program, *args], stdout=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()
        assert "listening on " in line, f"{program} does not listen: {line!r}"
        self.address = line.split("listening on ")[1].strip()
        self.url = f"http://{self.address}/"

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)

    def ended(self):
        report, _ = self.process.communicate(timeout=PATIENCE)
        assert self.process.returncode == 0, report
        return report

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()


class Driver:
    """chromedriver, on a port that it chooses. Its windows end with the block."""

    def __init__(self, folder, shots):
        self.folder, self.shots, self.windows = folder, shots, []
        command = ["chromedriver", "--port=0"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for line in self.process.stdout:
            port = re.search(r"on port (\d+)", line)
            if port and "success" in line:
                self.url = f"http://127.0.0.1:{port[1]}"
                return
        raise AssertionError("chromedriver does not start")

    def call(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"content-type": "application/json"}, method=method)
        # The proxy that the environment may name is not for this address.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=PATIENCE) as response:
                return json.load(response)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{method} {path}: {error.read().decode()[:2000]}") from None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for window in list(self.windows):
            window.close()
        self.process.terminate()
        self.process.communicate()


class Window:
    """A window of a browser of its own, with an empty profile."""

    def __init__(self, driver, scheme, width, height):
        self.driver, self.scheme = driver, scheme
        profile = tempfile.mkdtemp(dir=driver.folder)
        args = [
            "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--disable-dev-shm-usage", "--no-proxy-server", "--hide-scrollbars", "--force-device-scale-factor=1",
            "--force-color-profile=srgb", "--disable-lcd-text", f"--user-data-dir={profile}",
            # Names that are not local have no address here: the browser looks up none.
            "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
        ]
        wanted = {"goog:chromeOptions": {"args": args}, "goog:loggingPrefs": {"browser": "ALL"}}
        session = driver.call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self.path = f"/session/{session['sessionId']}"
        driver.windows.append(self)
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.devtools("Emulation.setDeviceMetricsOverride", metrics)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.devtools("Emulation.setEmulatedMedia", {"features": features})

    def call(self, method, path, body=None):
        return self.driver.call(method, self.path + path, body)

    def devtools(self, command, params):
        return self.call("POST", "/goog/cdp/execute", {"cmd": command, "params": params})

    def open(self, url):
        self.call("POST", "/url", {"url": url})

    def run(self, script):
        return self.call("POST", "/execute/sync", {"script": script, "args": []})

    def until(self, script):
        end = time.monotonic() + PATIENCE
        while not self.run(script):
            assert time.monotonic() < end, f"this does not become true: {script}"
            time.sleep(0.05)

    def type(self, selector, text):
        element = self.call("POST", "/element", {"using": "css selector", "value": selector})
        self.call("POST", f"/element/{next(iter(element.values()))}/value", {"text": text})

    def screenshot(self, name):
        png = base64.b64decode(self.call("GET", "/screenshot"))
        if self.driver.shots:
            with open(os.path.join(self.driver.shots, f"{name}.png"), "wb") as file:
                file.write(png)
        return Image(png)

    def expect_clean_console(self, allowed=None):
        entries = self.call("POST", "/se/log", {"type": "browser"})
        wrong = [entry for entry in entries if entry["level"] != "INFO" and not (allowed and allowed in entry["message"])]
        assert not wrong, f"the console has {wrong}"

    def close(self):
        self.driver.windows.remove(self)
        self.call("DELETE", "")


class Image:
    """The pixels of a PNG file with eight bits per sample."""

    def __init__(self, png):
        assert png.startswith(b"\x89PNG\r\n\x1a\n"), "a screenshot is a PNG file"
        data, at = b"", 8
        while at < len(png):
            length, kind = struct.unpack(">I4s", png[at : at + 8])
            chunk = png[at + 8 : at + 8 + length]
            if kind == b"IHDR":
                self.width, self.height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", chunk)
                assert depth == 8 and colour in (2, 6) and not interlaced, "another kind of PNG file"
                self.samples = 3 if colour == 2 else 4
            elif kind == b"IDAT":
                data += chunk
            at += 12 + length
        self.rows = self.unfilter(zlib.decompress(data))

    def unfilter(self, data):
        """Undoes the filter of each row: a byte is stored as its difference to a guess from its neighbours."""
        rows, step, length = [], self.samples, self.width * self.samples
        above = bytes(length)
        for start in range(0, len(data), length + 1):
            kind, row = data[start], bytearray(data[start + 1 : start + 1 + length])
            for at in range(length) if kind else ():
                left = row[at - step] if at >= step else 0
                corner = above[at - step] if at >= step else 0
                if kind == 1:
                    guess = left
                elif kind == 2:
                    guess = above[at]
                elif kind == 3:
                    guess = (left + above[at]) // 2
                else:
                    sum_ = left + above[at] - corner
                    guess = min((left, above[at], corner), key=lambda near: abs(sum_ - near))
                row[at] = (row[at] + guess) & 255
            rows.append(row)
            above = row
        return rows

    def pixel(self, x, y):
        at = int(x) * self.samples
        return tuple(self.rows[int(y)][at : at + 3])

    def expect_text_on(self, rect, ground, text, what):
        """Fails unless the rectangle is inside the picture, mostly has the colour `ground`, and has a text on it."""
        left, top, right, bottom = (round(rect[side]) for side in ("left", "top", "right", "bottom"))
        inside = 0 <= left < right <= self.width and 0 <= top < bottom <= self.height
        assert inside, f"{what} is outside of the window: {rect}"
        pixels = [self.pixel(x, y) for y in range(top, bottom) for x in range(left, right)]
        share = {colour: pixels.count(colour) / len(pixels) for colour in (ground, text)}
        assert share[ground] > 0.5, f"{what} has its colour {ground} on {share[ground]:.0%} of its place {rect}"
        assert share[text] > 0.005, f"{what} has no text in the colour {text}: {share[text]:.2%} of its place {rect}"


if __name__ == "__main__":
    main()
