"""A bank in one file: what the editor test types into."""


class Account:
    def __init__(self, owner, balance):
        self.owner = owner

    def deposit(self, amount):
        self.balance += amount
        return self.balance

    def withdraw(self, amount):
        if amount > self.balance:
            raise ValueError("not enough money")
        self.balance -= amount
        return self.balance
