"""A small shop: items, prices, and what they come to."""

import json


class Item:
    def __init__(self, name, price):
        self.name = name
        self.price = price

    def __repr__(self):
        return f"Item({self.name!r}, {self.price})"


class Inventory:
    def __init__(self):
        self.items = {}

    def remove(self, name):
        if name not in self.items:
            raise KeyError(name)
        del self.items[name]

    def get(self, name):
        return self.items.get(name)

    def total(self):

    def __len__(self):
        return len(self.items)


def load(path):


def save(path, inventory):
    with open(path, "w") as f:
        json.dump(inventory.items, f)
