"""What a lane keeps of its brands from one group to the next.

The lane's version, a number that every transaction raises under the lane's lock, tells whether anybody else has changed
a brand since: only then are brands, their packages and their open freezes read again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from costcenter.book import Book
from costcenter.model import Brand, Freeze, Package

# Older than any version of a lane.
NOTHING_KEPT = -1


@dataclass(slots=True)
class Kept:
    """State as of `version` of the lane. Both figures are bounds: beyond them it is read again instead.

    Parameters: `packages_max` packages, a brand counting as one more; `freezes_max` open freezes, the oldest go first.
    """

    packages_max: int
    freezes_max: int
    version: int = NOTHING_KEPT
    # With the number of packages that each counts for: a book adds to those that it is lent.
    _brands: dict[int, tuple[Brand, dict[int, Package], int]] = field(default_factory=dict)
    _freezes: dict[tuple[int, str], Freeze] = field(default_factory=dict)
    _packages: int = 0

    def clear(self) -> None:
        """Forget everything: a transaction failed, or another process was here."""
        self.version = NOTHING_KEPT
        self._brands.clear()
        self._freezes.clear()
        self._packages = 0

    def forget(self, brand_ids: Iterable[int], version: int) -> None:
        """Forget brands that a committed transaction changed without a book, as of the lane's new version."""
        self.version = version
        for brand_id in brand_ids:
            before = self._brands.pop(brand_id, None)
            self._packages -= before[2] if before else 0

    def missing_brands(self, brand_ids: Iterable[int]) -> list[int]:
        """Those of the brands that must be read."""
        return [brand_id for brand_id in brand_ids if brand_id not in self._brands]

    def missing_freezes(self, keys: Iterable[tuple[int, str]]) -> list[tuple[int, str]]:
        """Those of the freezes (brand_id, order_no) that must be read."""
        return [key for key in keys if key not in self._freezes]

    def lend(self, book: Book, brand_ids: Iterable[int], freezes: Iterable[tuple[int, str]]) -> None:
        """Put what is kept into a book. What the book then changes is changed here; `keep` or `clear` must follow."""
        for brand_id in brand_ids:
            kept = self._brands.get(brand_id)
            if kept is not None:
                book.add_brand(kept[0], kept[1])
        book.add_freezes([self._freezes[key] for key in freezes if key in self._freezes])

    def keep(self, book: Book, version: int) -> None:
        """Take over the state that a book's committed transaction left, as of the lane's new version."""
        self.version = version
        for brand, queue in book.brands_with_queues():
            before = self._brands.get(brand.brand_id)
            self._packages -= before[2] if before else 0
            # What is spent is not read with a brand either.
            live = {package.package_id: package for package in queue if package.remaining}
            self._brands[brand.brand_id] = (brand, live, len(live) + 1)
            self._packages += len(live) + 1
        self._freezes.update([((freeze.brand_id, freeze.order_no), freeze) for freeze in book.changes.new_freezes])
        for freeze in (book.changes.freezes_sent | book.changes.freezes).values():
            if freeze.open:
                self._freezes[freeze.brand_id, freeze.order_no] = freeze
            else:
                self._freezes.pop((freeze.brand_id, freeze.order_no), None)
        if self._packages > self.packages_max:
            self._brands.clear()
            self._packages = 0
        while len(self._freezes) > self.freezes_max:
            del self._freezes[next(iter(self._freezes))]
