#!/usr/bin/env python3
"""How often suggestions are right: random carets in real source files, through a real `redstart lsp`.

At each caret the rest of the line is taken away and a suggestion asked for, as an editor asks while one types.
Counted is whether the next word (or the rest of a half-typed one) and whether the whole line is what stood
there. Weak as a measure of quality, since other continuations may be as good; good for comparing two versions.

usage: random_carets.py REDSTART FOLDER [CARETS [SEED]] [OPTION ...] [OPTIONS OF redstart lsp ...]
example: random_carets.py target/release/redstart /usr/lib/python3/dist-packages 600 3 --model models/nano
"""
import argparse
import json
import pathlib
import random
import re
import subprocess
import sys
import tempfile
import time

LANGUAGES = {".py": "python", ".rs": "rust", ".js": "javascript", ".ts": "typescript", ".c": "c", ".go": "go"}
CLOSERS = {"(": ")", "[": "]", "{": "}"}


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

    def suggestion(self, uri, language, lines, row, column, after, typed):
        """The line of the caret with the suggestion in it, and the suggestion alone; None without one.

        `after` stands right of the caret. With `typed`, so many lines before are there only after a first
        request, as if one had typed or accepted them since.
        """
        before, below = lines[:row], lines[row + 1:]
        last = lines[row][:column]
        first = max(row - typed, 1) if typed and row > 0 else None
        opened = [*before[:first], *below] if first else [*before, last + after, *below]
        self.notify("textDocument/didOpen", {
            "textDocument": {"uri": uri, "languageId": language, "version": 1, "text": "\n".join(opened)}})
        if first:
            at = {"line": first - 1, "character": len(before[first - 1])}
            self.items(uri, at, 1)
            text = "".join("\n" + line for line in [*before[first:], last]) + after
            self.notify("textDocument/didChange", {
                "textDocument": {"uri": uri, "version": 2},
                "contentChanges": [{"range": {"start": at, "end": at}, "text": text}]})
        items = self.items(uri, {"line": row, "character": column}, 2)
        self.notify("textDocument/didClose", {"textDocument": {"uri": uri}})
        if not items:
            return None
        line = last + after
        range_ = items[0].get("range") or {"start": {"character": column}, "end": {"character": column}}
        text = items[0]["insertText"].split("\n")[0]
        suggested = text[column - range_["start"]["character"]:]
        return line[:range_["start"]["character"]] + text + line[range_["end"]["character"]:], suggested

    def items(self, uri, position, trigger):
        answer = self.request("textDocument/inlineCompletion", {
            "textDocument": {"uri": uri}, "position": position, "context": {"triggerKind": trigger}})
        return answer["items"] if answer else []


def texts(folder, suffix):
    for path in sorted(pathlib.Path(folder).rglob("*" + suffix)):
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
        if len(code) > 6 and not code.startswith(("#", '"', "//", "*", "/*")):
            return row, random.randrange(len(line) - len(line.lstrip()), len(line))
    return None


def words(text):
    return re.findall(r"\w+|[^\w\s]", text)


def closed(text):
    """What an editor has put after the caret for the brackets opened in `text`."""
    open_ = []
    for char in text:
        if char in CLOSERS:
            open_.append(CLOSERS[char])
        elif open_ and char == open_[-1]:
            open_.pop()
    return "".join(reversed(open_))


def with_hints(options, hints, into):
    """The options of the server with another redstart.json beside the model's files."""
    if not hints:
        return options
    if "--model" not in options:
        sys.exit("--hint needs --model DIRECTORY")
    at = options.index("--model") + 1
    model = pathlib.Path(options[at]).resolve()
    known = json.loads((model / "redstart.json").read_text())
    for name, _, value in (hint.partition("=") for hint in hints):
        known[name] = value if isinstance(known.get(name), str) else json.loads(value)
    for file in model.iterdir():
        if file.name != "redstart.json" and file.is_file():
            (into / file.name).symlink_to(file)
    (into / "redstart.json").write_text(json.dumps(known))
    return [*options[:at], str(into), *options[at + 1:]]


def main():
    parser = argparse.ArgumentParser(usage=__doc__, allow_abbrev=False)
    parser.add_argument("redstart")
    parser.add_argument("folder")
    parser.add_argument("carets", type=int, nargs="?", default=600)
    parser.add_argument("seed", type=int, nargs="?", default=1)
    parser.add_argument("--suffix", default=".py", help="of the files")
    parser.add_argument("--hint", action="append", default=[], metavar="NAME=VALUE",
                        help="another value in the redstart.json of --model, such as fim_layout=line-last")
    parser.add_argument("--typed", type=int, default=0, metavar="LINES",
                        help="lines before the caret's that are typed after a first request")
    parser.add_argument("--auto-close", action="store_true",
                        help="brackets opened on the line are closed after the caret, as many editors do")
    arguments, options = parser.parse_known_args()
    random.seed(arguments.seed)
    files = [text for text in texts(arguments.folder, arguments.suffix) if caret(text.split("\n"))]
    random.shuffle(files)
    with tempfile.TemporaryDirectory() as folder:
        options = with_hints(options, arguments.hint, pathlib.Path(folder))
        server = Server([arguments.redstart, "lsp", *options])
        measure(server, files, arguments)


def measure(server, files, arguments):
    carets, shown, next_word, whole_line = arguments.carets, 0, 0, 0
    language = LANGUAGES.get(arguments.suffix, "plaintext")
    for number in range(carets):
        lines = files[number % len(files)].split("\n")
        row, column = caret(lines) or (0, 0)
        wanted = lines[row][column:]
        after = closed(lines[row][:column]) if arguments.auto_close else ""
        uri = f"file:///carets/{number}{arguments.suffix}"
        answer = server.suggestion(uri, language, lines, row, column, after, arguments.typed)
        if answer is None:
            continue
        line, suggested = answer
        shown += 1
        next_word += words(suggested)[:1] == words(wanted)[:1]
        whole_line += line.strip() == lines[row].strip()
    of_shown = max(shown, 1)
    print(f"{carets} carets, {shown / carets:.1%} got a suggestion; of these the next word was right in "
          f"{next_word / of_shown:.1%}, the rest of the line in {whole_line / of_shown:.1%}")


main()
