#!/usr/bin/env python3
"""Writes the recordings beside this file: python3 tests/recordings/make.py

No person typed these. Texts, edits and accepts are written down below; a seeded generator adds what a
person's fingers do: times between keys, pauses, typing errors and their correction. The same script and
Python version give the same files. docs/RECORDINGS.md describes the format.
"""

import json
import math
import pathlib
import random

HERE = pathlib.Path(__file__).parent
CLOSERS = {"(": ")", "[": "]", "{": "}", '"': '"'}
NEIGHBOURS = {
    "a": "sq", "b": "vn", "c": "xv", "d": "sf", "e": "wr", "f": "dg", "g": "fh", "h": "gj", "i": "uo",
    "j": "hk", "k": "jl", "l": "k", "m": "n", "n": "bm", "o": "ip", "p": "o", "q": "wa", "r": "et",
    "s": "ad", "t": "ry", "u": "yi", "v": "cb", "w": "qe", "x": "zc", "y": "tu", "z": "x",
}


class Typist:
    """Edits a text as a person would and writes down the events."""

    def __init__(self, name, language, file, text, *, auto_close=False, prepend=None):
        self.name, self.language, self.file = name, language, file
        self.initial = self.text = text
        self.auto_close, self.prepend = auto_close, prepend
        self.random = random.Random(name)
        self.caret = 0
        self.clock = 0.0
        self.events = []
        self.to_overtype = 0

    # Time, in milliseconds.

    def spend(self, median, sigma=0.3):
        self.clock += median * math.exp(self.random.gauss(0, sigma))

    def think(self, seconds):
        self.spend(1000 * seconds, 0.2)

    def key_time(self, key, before):
        if key == "\n":
            self.spend(260)
        elif before.isalnum() and (key.isalnum() or key == "_"):
            self.spend(125)
        elif key.isalnum() or key == " ":
            self.spend(155)
        else:
            self.spend(185)

    # Edits.

    def place(self, at):
        line_start = self.text.rfind("\n", 0, at) + 1
        return {"line": self.text.count("\n", 0, at), "character": at - line_start}

    def event(self, **what):
        self.events.append({"at_ms": round(self.clock), **what})

    def insert(self, text):
        self.event(insert=text)
        self.text = self.text[: self.caret] + text + self.text[self.caret :]
        self.caret += len(text)

    def backspace(self, count=1):
        self.event(delete=count)
        self.text = self.text[: self.caret - count] + self.text[self.caret :]
        self.caret -= count

    def edit(self, start, end, text, caret=None):
        what = {"edit": {"start": self.place(start), "end": self.place(end), "text": text}}
        self.text = self.text[:start] + text + self.text[end:]
        self.caret = start + len(text)
        if caret is not None:
            self.caret = caret
            what["caret"] = self.place(caret)
        self.event(**what)

    def go(self, at):
        self.caret = at
        self.event(caret=self.place(at))

    # What a person does.

    def after(self, text, pause=1.2):
        """Looks for a text and goes behind it."""
        if self.events:
            self.think(pause)
        self.to_overtype = 0
        self.go(self.text.index(text) + len(text))

    def erase(self, count):
        """Holds backspace."""
        self.think(0.5)
        for _ in range(count):
            self.backspace()
            self.spend(70, 0.1)

    def delete_forward(self, count):
        self.think(0.4)
        for _ in range(count):
            self.event(delete_forward=1)
            self.text = self.text[: self.caret] + self.text[self.caret + 1 :]
            self.spend(80, 0.1)

    def rename(self, old, new):
        """Selects a text and replaces it, in one edit."""
        self.think(1.0)
        start = self.text.index(old)
        self.edit(start, start + len(old), new)

    def undo(self, count):
        """Takes back the last characters typed, in one edit."""
        self.think(0.7)
        self.edit(self.caret - count, self.caret, "")

    def look(self, part):
        """Stops at the suggestion and accepts it if it is what comes next."""
        self.spend(380)
        self.event(accept=part)

    def type(self, text, looks=0.7):
        """Types. A line break takes the indentation after it along, as editors do."""
        at = 0
        look_at = self.random.randint(2, 6)
        while at < len(text):
            before = text[at - 1] if at else " "
            key = text[at]
            length = 1
            if key == "\n":
                length += len(text[at + 1 :]) - len(text[at + 1 :].lstrip(" \t"))
                look_at = at + length + self.random.randint(1, 7)
                # The end of a line is where one thinks; the end of a block, where one thinks longer.
                if self.random.random() < 0.4:
                    self.think(self.random.choice([0.5, 0.6, 0.8, 1.1, 1.7]))
            if at == look_at:
                look_at += self.random.randint(9, 24)
                if self.random.random() < looks:
                    self.look(self.random.choice(["line", "line", "word", "word", "whole"]))
            self.key_time(key, before)
            at += self.press(text, at, length, before)
        if self.random.random() < 0.5:
            self.think(0.6)

    def press(self, text, at, length, before):
        """One key; returns how many characters of `text` are there then."""
        key = text[at : at + length]
        if self.to_overtype and self.text.startswith(text[at : at + self.to_overtype], self.caret):
            rest = self.text[self.caret : self.caret + self.to_overtype]
            closer = rest.strip()
            if closer and text.startswith(rest, at) and (rest == closer or key[0] == "\n"):
                self.go(self.caret + self.to_overtype)
                taken, self.to_overtype = self.to_overtype, 0
                return taken
        if self.auto_close and key[0] == "\n" and self.text[self.caret - 1 : self.caret + 1] == "{}":
            line_start = self.text.rfind("\n", 0, self.caret) + 1
            line = self.text[line_start : self.caret]
            outer = "\n" + line[: len(line) - len(line.lstrip())]
            self.insert(key)
            self.edit(self.caret, self.caret, outer, caret=self.caret)
            self.to_overtype = len(outer) + 1
            return length
        if self.auto_close and key in CLOSERS and self.closes_soon(text, at):
            self.insert(key)
            self.edit(self.caret, self.caret, CLOSERS[key], caret=self.caret)
            self.to_overtype = 1
            return length
        if before.isalpha() and key in NEIGHBOURS and self.random.random() < 0.025:
            self.mistype(text, at)
            self.key_time(key, before)
        self.insert(key)
        return length

    def closes_soon(self, text, at):
        """Brackets within brackets are typed by hand here, which keeps one closer to type over."""
        follows = self.text[self.caret : self.caret + 1]
        return not self.to_overtype and follows in ("", "\n", " ") and CLOSERS[text[at]] in text[at + 1 :]

    def mistype(self, text, at):
        """A wrong key, perhaps a right one after it, a moment to notice, and backspaces."""
        self.insert(self.random.choice(NEIGHBOURS[text[at]]))
        extra = 0
        if text[at + 1 : at + 2].isalpha() and self.random.random() < 0.4:
            self.spend(125)
            self.insert(text[at + 1])
            extra = 1
        self.spend(330)
        for _ in range(1 + extra):
            self.backspace()
            self.spend(110)

    def write(self):
        recording = {
            "format": "redstart-typing/1",
            "language": self.language,
            "file": self.file,
            "text": self.initial,
            "final_text": self.text,
        }
        if self.prepend:
            recording["prepend"] = {"text": self.prepend[0], "times": self.prepend[1]}
        head = json.dumps(recording, indent=1, ensure_ascii=False)[:-2]
        lines = (json.dumps(event, separators=(",", ":"), ensure_ascii=False) for event in self.events)
        body = head + ',\n "events": [\n' + ",\n".join(lines) + "\n ]\n}\n"
        (HERE / f"{self.name}.json").write_text(body, encoding="utf-8")
        print(f"{self.name}: {len(self.events)} events, {self.clock / 1000:.0f} s, {len(body)} bytes")


def python_ledger():
    t = Typist("python-ledger", "python", "ledger.py", '''\
"""A ledger of accounts."""

from dataclasses import dataclass, field


@dataclass
class Entry:
    account: str
    amount: int
    note: str = ""


@dataclass
class Ledger:
    entries: list[Entry] = field(default_factory=list)

    def add(self, account, amount, note=""):
        self.entries.append(Entry(account, amount, note))
''')
    t.after("Entry(account, amount, note))")
    t.type("\n\n    def balance(self, account):\n        total = 0\n        for entry in self.entries:\n"
           "            if entry.account == account:\n                total += entry.amount\n        return total")
    t.think(1.5)
    t.type("\n\n    def accounts(self):\n        return sorted({entry.account for entry in self.entries})")
    t.think(1.2)
    t.type("\n\n    def transfer(self, source, target, amount):\n        if amount <= 0:\n"
           '            raise ValueError("the amount must be positive")\n'
           "        self.add(source, -amount)\n        self.add(target, amount)")
    t.after('    note: str = ""')
    t.type("\n    day: int = 0")
    return t


def python_readings():
    t = Typist("python-readings", "python", "readings.py", '''\
import csv
import statistics
from pathlib import Path


def load(path):
    with open(path, newline="") as file:
        return [row for row in csv.DictReader(file)]


def main():
    rows = load(Path("readings.csv"))
    print(len(rows))


if __name__ == "__main__":
    main()
''', auto_close=True)
    t.after("    print(len(rows))")
    t.type('\n    values = [float(row["value"]) for row in rows]\n    print(statistics.mean(values))')
    t.after("return [row for row in csv.DictReader(file)]")
    t.type("\n\n\ndef by_station(rows):\n    groups = {}\n    for row in rows:\n"
           '        groups.setdefault(row["station"], []).append(row)\n    return groups')
    t.after("    print(statistics.mean(values))")
    t.type("\n    for station, group in by_station(rows).items():\n"
           '        values = [float(row["value"]) for row in group]\n        print(station, max(valu')
    t.undo(4)
    t.type("values), min(values))")
    t.rename("import statistics\n", "import statistics\nimport sys\n")
    t.after("def load(path):")
    t.type('\n    """Reads the rows of a file."""')
    t.after('rows = load(Path(')
    t.delete_forward(14)
    t.type("sys.argv[1]", looks=0.2)
    return t


def rust_tokens():
    t = Typist("rust-tokens", "rust", "tokens.rs", '''\
//! Splits an expression into tokens.

#[derive(Debug, Clone, PartialEq)]
pub enum Token {
    Number(f64),
    Plus,
    Minus,
    Open,
    Close,
}

pub fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(&c) = chars.peek() {
        match c {
            '+' => {
                tokens.push(Token::Plus);
                chars.next();
            }
        }
    }
    Ok(tokens)
}
''')
    t.after("tokens.push(Token::Plus);\n                chars.next();\n            }")
    t.type("\n            '-' => {\n                tokens.push(Token::Minus);\n                chars.next();\n            }")
    t.type("\n            '(' => {\n                tokens.push(Token::Open);\n                chars.next();\n            }")
    t.think(1.5)
    t.type("\n            c if c.is_whitespace() => {\n                chars.next();\n            }")
    t.type("\n            c => return Err(format!(\"unexpected character {c}\")),")
    t.after("    Minus,")
    t.type("\n    Times,")
    t.erase(7)
    t.type("\n    Star,", looks=0)
    t.after("    Ok(tokens)\n}")
    t.type("\n\nimpl Token {\n    pub fn is_operator(&self) -> bool {\n        matches!(self, Token::Plus | Token::Minus")
    t.type(")\n    }\n}", looks=0.2)
    return t


def rust_grid():
    t = Typist("rust-grid", "rust", "grid.rs", '''\
use std::fmt;

/// A rectangle of cells, row by row.
pub struct Grid {
    width: usize,
    height: usize,
    cells: Vec<char>,
}

impl Grid {
    pub fn new(width: usize, height: usize) -> Self {
        Self { width, height, cells: vec![' '; width * height] }
    }
}
''', auto_close=True)
    t.after("cells: vec![' '; width * height] }\n    }")
    t.type("\n\n    pub fn get(&self, x: usize, y: usize) -> Option<char> {\n"
           "        if x < self.width && y < self.height {\n"
           "            Some(self.cells[y * self.width + x])\n"
           "        } else {\n            None\n        }\n    }")
    t.think(2.0)
    t.type("\n\n    pub fn set(&mut self, x: usize, y: usize, cell: char) {\n"
           "        self.cells[y * self.width + x] = cell;\n    }")
    t.rename("cells: Vec<char>,", "cells: Vec<char>,\n    changes: usize,")
    t.after("= cell;")
    t.type("\n        self.changes += 1;")
    t.after("cells: vec![' '; width * height]")
    t.type(", changes: 0", looks=0.3)
    return t


def typescript_cart():
    t = Typist("typescript-cart", "typescript", "cart.ts", '''\
export interface Item {
  name: string;
  price: number;
  quantity: number;
}

export class Cart {
  private items: Item[] = [];

  add(item: Item): void {
    this.items.push(item);
  }
}
''', auto_close=True)
    t.after("    this.items.push(item);\n  }")
    t.type("\n\n  total(): number {\n    let total = 0;\n    for (const item of this.items) {\n"
           "      total += item.price * item.quantity;\n    }\n    return total;\n  }")
    t.think(1.6)
    t.type("\n\n  remove(name: string): boolean {\n    const before = this.items.length;\n"
           "    this.items = this.items.filter((item) => item.name !== name);\n"
           "    return this.items.length < before;\n  }")
    t.after("  quantity: number;")
    t.type("\n  note?: string;")
    t.after("    this.items.push(item);\n  }\n\n  total(): number {")
    t.type("\n    // Prices are in cents, so nothing is rounded.", looks=0)
    return t


def go_queue():
    t = Typist("go-queue", "go", "queue.go", '''\
package queue

import (
\t"errors"
\t"sync"
)

// Queue is a first-in, first-out list that several goroutines may use.
type Queue struct {
\tmu    sync.Mutex
\titems []string
}

var ErrEmpty = errors.New("the queue is empty")

func (q *Queue) Push(item string) {
\tq.mu.Lock()
\tdefer q.mu.Unlock()
\tq.items = append(q.items, item)
}
''')
    t.after("q.items = append(q.items, item)\n}")
    t.type("\n\nfunc (q *Queue) Pop() (string, error) {\n\tq.mu.Lock()\n\tdefer q.mu.Unlock()\n"
           "\tif len(q.items) == 0 {\n\t\treturn \"\", ErrEmpty\n\t}\n\titem := q.items[0]\n"
           "\tq.items = q.items[1:]\n\treturn item, nil\n}")
    t.think(2.0)
    t.type("\n\n// Len returns the number of items.\nfunc (q *Queue) Len() int {\n\tq.mu.Lock()\n"
           "\tdefer q.mu.Unlock()\n\treturn len(q.items)\n}")
    t.after("\titems []string")
    t.type("\n\tclosed bool")
    t.undo(7)
    t.type(" bool", looks=0)
    return t


def c_strings():
    t = Typist("c-strings", "c", "strings.c", '''\
#include <stdlib.h>
#include <string.h>

struct builder {
    char *text;
    size_t length;
    size_t capacity;
};

int builder_reserve(struct builder *b, size_t extra)
{
    if (b->length + extra <= b->capacity)
        return 0;
    size_t capacity = 2 * (b->length + extra);
    char *text = realloc(b->text, capacity);
    if (text == NULL)
        return -1;
    b->text = text;
    b->capacity = capacity;
    return 0;
}
''')
    t.after("    b->capacity = capacity;\n    return 0;\n}")
    t.type("\n\nint builder_add(struct builder *b, const char *text)\n{\n    size_t length = strlen(text);\n"
           "    if (builder_reserve(b, length + 1) != 0)\n        return -1;\n"
           "    memcpy(b->text + b->length, text, length + 1);\n    b->length += length;\n    return 0;\n}")
    t.think(1.8)
    t.type("\n\nvoid builder_free(struct builder *b)\n{\n    free(b->text);\n    b->text = NULL;\n"
           "    b->length = 0;\n    b->capacity = 0;\n}")
    t.after("#include <stdlib.h>", pause=0.9)
    t.type("\n#include <stdio.h>")
    t.erase(19)
    t.after("struct builder {")
    t.type("\n    /* Ends with a zero byte, which length does not count. */", looks=0)
    return t


def java_library():
    t = Typist("java-library", "java", "Library.java", '''\
import java.util.ArrayList;
import java.util.List;

public class Library {
    private final List<Book> books = new ArrayList<>();

    public void add(Book book) {
        books.add(book);
    }

    public record Book(String title, String author, int year) {
    }
}
''', auto_close=True)
    t.after("        books.add(book);\n    }")
    t.type("\n\n    public List<Book> byAuthor(String author) {\n        List<Book> found = new ArrayList<>();\n"
           "        for (Book book : books) {\n            if (book.author().equals(author)) {\n"
           "                found.add(book);\n            }\n        }\n        return found;\n    }")
    t.think(1.4)
    t.type("\n\n    public int size() {\n        return books.size();\n    }")
    t.rename("import java.util.List;", "import java.util.List;\nimport java.util.Objects;")
    t.after("public void add(Book book) {")
    t.type("\n        Objects.requireNonNull(book);")
    return t


def python_10000_lines():
    t = Typist("python-10000-lines", "python", "generated.py", '''\
class Inventory:
    def __init__(self):
        self.items = {}

    def add(self, name, price):
        self.items[name] = price


def report(inventory):
    for name, price in sorted(inventory.items.items()):
        print(name, price)
''', prepend=("def helper_{n}(value):\n    return value + {n}\n\n\n", 2497))
    t.after("        self.items[name] = price")
    t.type("\n\n    def total(self):\n        return sum(self.items.values())")
    t.think(1.3)
    t.type("\n\n    def cheapest(self):\n        if not self.items:\n            return None\n"
           "        return min(self.items, key=self.items.get)")
    t.after("        print(name, price)")
    t.type("\n    print(inventory.total())")
    t.after("self.items = {}")
    t.type("\n        self.currency = \"EUR\"")
    t.after("    def cheapest(self):")
    t.type('\n        """The name of the cheapest item."""')
    return t


if __name__ == "__main__":
    for make in [python_ledger, python_readings, rust_tokens, rust_grid, typescript_cart, go_queue,
                 c_strings, java_library, python_10000_lines]:
        make().write()
