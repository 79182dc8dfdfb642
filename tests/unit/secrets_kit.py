"""URLs with a secret, written in every way that users write them. No text that is shown may hold the secret."""

CANARY = "CANARYs3cret"
ODD_URLS = {
    "plain": f"postgresql://shop:{CANARY}@db.example.com:5432/orders",
    "with a driver": f"postgresql+psycopg://shop:{CANARY}@h1:5432,h2:5433/orders",
    "in the query": f"postgresql://shop@h/orders?sslmode=require&sslpassword={CANARY}",
    "an escaped name": f"postgresql://shop@h/orders?pass%77ord={CANARY}",
    "an option": f"postgresql://h/orders?options=-c%20app.key%3D{CANARY}",
    "a name alone": f"https://h/?{CANARY}",
    "an @ in it": f"postgresql://shop:pa@{CANARY}@h/orders",
    "a slash in it": f"postgresql://shop:pa/{CANARY}@h/orders",
    "a # in it": f"postgresql://shop:pa#{CANARY}@h/orders",
    "a ? in it": f"postgresql://shop:pa?x={CANARY}@h/orders",
    "a blank in it": f"postgresql://shop:pa {CANARY}@h/orders",
    "a quote in it": f"postgresql://shop:pa'{CANARY}@h/orders",
    "cut off": f"postgresql://shop:{CANARY}",
    "no name": f"redis://:{CANARY}@h:6379/0",
    "a token": f"https://{CANARY}@h/path",
    "a token of Redis": f"rediss://{CANARY}@h",
    "a token behind #": f"https://h/#{CANARY}",
    "parameters": f"https://h/api?token={CANARY}&access_token={CANARY};key={CANARY}&secret={CANARY}",
    "no scheme": f"shop:{CANARY}@h/orders",
    "one slash": f"postgresql:/shop:{CANARY}@h/orders",
    "IPv6": f"mysql://shop:{CANARY}@[::1]:3306/orders",
    "within a parameter": f"postgresql://shop@h/orders?host=shop:{CANARY}@h2",
}  # fmt: skip
