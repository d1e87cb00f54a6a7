"""SMPP 3.4: the codec (`pdus`, `texts`, `receipts`), the session and the carrier made of them."""
