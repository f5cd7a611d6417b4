#!/usr/bin/env python3
"""How often suggestions are right: random carets in real Python files, through a real `redstart lsp`.

At each caret the rest of the line is taken away and a suggestion asked for, as an editor asks while one types.
Counted is whether the next word (or the rest of a half-typed one) and whether the rest of the line is what stood
there. Weak as a measure of quality, since other continuations may be as good; good for comparing two versions.

usage: random_carets.py REDSTART FOLDER [CARETS [SEED [OPTIONS OF redstart lsp ...]]]
example: random_carets.py target/release/redstart /usr/lib/python3/dist-packages 600 3 --model models/nano
"""
import json
import pathlib
import random
import re
import subprocess
import sys
import time


class Server:
    """A session over stdio."""

    def __init__(self, command):
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self.next_id = 0
        self.request("initialize", {"processId": None, "capabilities": {
            "general": {"positionEncodings": ["utf-32"]}, "textDocument": {"inlineCompletion": {}}}})
        self.notify("initialized", {})
        while (status := self.request("redstart/status", None))["state"] != "ready":
            if status["state"] == "failed":
                sys.exit(status["message"])
            time.sleep(0.01)

    def send(self, message):
        body = json.dumps({"jsonrpc": "2.0", **message}).encode()
        self.process.stdin.write(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        self.process.stdin.flush()

    def receive(self):
        length = 0
        while (line := self.process.stdout.readline()) not in (b"\r\n", b""):
            if line.startswith(b"Content-Length:"):
                length = int(line.split(b":")[1])
        return json.loads(self.process.stdout.read(length))

    def notify(self, method, params):
        self.send({"method": method, "params": params})

    def request(self, method, params):
        self.next_id += 1
        self.send({"id": self.next_id, "method": method, "params": params})
        while True:
            message = self.receive()
            if "method" in message:
                if "id" in message:
                    self.send({"id": message["id"], "result": None})
            elif message["id"] == self.next_id:
                return message.get("result")

    def suggestion(self, uri, text, line, column):
        """The text suggested at a place, or None."""
        self.notify("textDocument/didOpen", {
            "textDocument": {"uri": uri, "languageId": "python", "version": 1, "text": text}})
        answer = self.request("textDocument/inlineCompletion", {
            "textDocument": {"uri": uri}, "position": {"line": line, "character": column},
            "context": {"triggerKind": 2}})
        self.notify("textDocument/didClose", {"textDocument": {"uri": uri}})
        items = answer["items"] if answer else []
        return items[0]["insertText"] if items else None


def texts(folder):
    for path in sorted(pathlib.Path(folder).rglob("*.py")):
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        if 1000 < len(text) < 30000 and text.count("\n") > 20:
            yield text


def caret(lines):
    """A place in the code of a file, line and column; None in a file with hardly any code."""
    for _ in range(100):
        row = random.randrange(len(lines) // 4, len(lines) - 2)
        line, code = lines[row], lines[row].strip()
        if len(code) > 6 and not code.startswith(("#", '"')):
            return row, random.randrange(len(line) - len(line.lstrip()), len(line))
    return None


def words(text):
    return re.findall(r"\w+|[^\w\s]", text)


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    command, folder = sys.argv[1:3]
    carets, seed = int((sys.argv[3:4] or ["600"])[0]), int((sys.argv[4:5] or ["1"])[0])
    random.seed(seed)
    files = [text for text in texts(folder) if caret(text.split("\n"))]
    random.shuffle(files)
    server = Server([command, "lsp", *sys.argv[5:]])
    shown = next_word = rest_of_line = 0
    for number in range(carets):
        lines = files[number % len(files)].split("\n")
        row, column = caret(lines) or (0, 0)
        wanted = lines[row][column:]
        before = "\n".join([*lines[:row], lines[row][:column], *lines[row + 1:]])
        text = server.suggestion(f"file:///carets/{number}.py", before, row, column)
        if text is None:
            continue
        first = text.split("\n")[0]
        shown += 1
        next_word += words(first)[:1] == words(wanted)[:1]
        rest_of_line += first.strip() == wanted.strip()
    of_shown = max(shown, 1)
    print(f"{carets} carets, {shown / carets:.0%} got a suggestion; of these the next word was right in "
          f"{next_word / of_shown:.0%}, the rest of the line in {rest_of_line / of_shown:.0%}")


main()
