"""What the panel calls traffic policies and their members: title, and what it is good for."""

# How the card of policies groups them; what stands in no group comes last.
GROUPS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Who may", ("access", "ip_access", "cors", "charging", "client_certificates")),
    ("Matching and changing", ("conditions", "rewrite", "transformation")),
    ("Choosing", ("load_balancing", "mirroring", "discovery")),
    ("Surviving", ("health_checks", "circuit_breaker", "retries", "concurrency", "maintenance")),
    ("Answering from memory", ("caching", "compression")),
    ("Upstreams", ("upstream_tls", "upstream_credentials", "websockets")),
)

# What holds where a service has no such policy; `admin_panel.policies.without` knows the rest.
WITHOUT: dict[str, str] = {
    "access": "an API key or a token of the application",
    "ip_access": "every address",
    "cors": "as the setting CORS_ORIGINS says",
    "client_certificates": "only keys and tokens",
    "charging": "each request costs 1",
    "load_balancing": "by weight, no sticky sessions",
    "discovery": "only the targets of its versions",
    "retries": "1 further try, on another target",
    "concurrency": "1024 at once per target and worker",
    "mirroring": "off",
    "maintenance": "off",
    "caching": "off",
    "compression": "off",
    "upstream_tls": "verified by the system's authorities",
    "websockets": "allowed, messages up to 16 MiB",
    "upstream_credentials": "none",
    "conditions": "none",
    "rewrite": "none, or the prefixes of the route",
    "transformation": "none",
    "aggregation": "none",
}

# Members whose form has another order than the policy: what belongs together stands together.
ORDER: dict[str, tuple[str, ...]] = {
    "caching": ("enabled", "default_ttl_s", "max_object_bytes", "stale_while_revalidate_s", "stale_if_error_s"),
}

# Units of members that are counts.
COUNTS: dict[str, str] = {
    "attempts": "tries",
    "failures": "failures",
    "healthy_threshold": "successes",
    "unhealthy_threshold": "failures",
    "min_requests": "requests",
    "max_connections": "requests",
    "max_waiting": "requests",
    "min_limit": "requests",
    "max_limit": "requests",
}

# Choices whose name alone says too little.
CHOICES: dict[str, str] = {
    "rule.mode": "as RATE_LIMIT_MODE says",
    "local": "each worker by itself",
    "strict": "all together, exactly",
    "leased": "all together, in slices",
    "share": "each worker admits its share",
    "open": "everybody passes",
    "closed": "nobody passes",
    "any": "an API key or a token",
    "key": "an API key",
    "token": "a token",
    "both": "an API key and a token",
    "public": "nothing: everybody may call",
    "ip_hash": "IP hash",
    "peak_ewma": "peak EWMA",
    "beside": "beside those that are found",
    "fallback": "as a fallback",
    "never": "never",
}

# Choices whose order says something: the usual one first.
CHOICES_IN_ORDER: dict[str, tuple[str, ...]] = {
    "rule.algorithm": (
        "token_bucket",
        "sliding_window",
        "sliding_log",
        "fixed_window",
        "leaky_bucket",
        "spike_arrest",
        "concurrency",
        "quota",
    ),
    "rule.mode": ("local", "leased", "strict"),
    "rule.outage": ("share", "open", "closed"),
}

# Lists of few known words, whose order says nothing: boxes to tick.
SETS: dict[str, tuple[str, ...]] = {
    "rule.per": ("key", "user", "application", "role", "ip", "endpoint", "service", "tenant", "gateway"),
    "rules.algorithms": (
        "RS256",
        "RS384",
        "RS512",
        "PS256",
        "PS384",
        "PS512",
        "ES256",
        "ES384",
        "ES512",
        "EdDSA",
        "HS256",
        "HS384",
        "HS512",
    ),
}

# Lists of names for which the panel has proposals.
SUGGESTED: dict[str, str] = {
    "rule.services": "services",
    "rule.applications": "applications",
    "restrictions.services": "services",
}

# What stands in an empty field, by policy and member; `admin_panel.policies` fills settings in.
EMPTY: dict[str, str] = {
    "circuit_breaker.failures": "CIRCUIT_BREAKER_FAILURES",
    "circuit_breaker.open_s": "CIRCUIT_BREAKER_TIMEOUT",
}

_CLAIMS = """[
  {"claim": "tenant", "values": ["acme"]}
]"""

# Worked examples of what is written as JSON.
EXAMPLES: dict[str, str] = {
    "restrictions.hours": """[
  {"days": ["mon", "tue", "wed", "thu", "fri"], "start": "08:00", "end": "18:00"}
]""",
    "rules.claims": _CLAIMS,
    "access.claims": _CLAIMS,
    "rules.role_map": """{"realm-admin": "admin"}""",
    "transformation.request__body__set": """[
  {"path": "customer.source", "value": "${header.x-client}"},
  {"path": "flags.beta", "value": true}
]""",
    "transformation.response__body__set": """[
  {"path": "servedBy", "value": "orders"},
  {"path": "items[0].isFirst", "value": true}
]""",
    "aggregation": """{
  "parts": [
    {"key": "user", "service": "users", "path": "/users/${path.id}", "required": true},
    {"key": "orders", "service": "orders", "path": "/orders?user=${path.id}", "timeoutMs": 2000}
  ]
}""",
}

TITLES: dict[str, tuple[str, str]] = {
    "access": (
        "Access",
        "What a caller must bring: a key, a token or both, and the scopes, roles and claims they need.",
    ),
    "ip_access": ("Addresses", "Whose requests are taken, by address and network."),
    "cors": ("Cross-origin requests", "Which origins may read the answers in a browser."),
    "client_certificates": (
        "Client certificates",
        "Who shows one of these on the TLS port needs no key: its requests are this application's.",
    ),
    "charging": ("Cost", "What one request takes from each limit."),
    "load_balancing": ("Load balancing", "Which target of a version answers. Without it they take turns by weight."),
    "health_checks": ("Health checks", "Targets that fail get no traffic until they are well again."),
    "circuit_breaker": ("Circuit breaker", "A target that fails several times in a row is left alone for a while."),
    "retries": ("Retries", "A request whose target fails goes to another one, if that is safe."),
    "concurrency": (
        "Places and overload",
        "How many requests may be under way, and who goes first when it is too many.",
    ),
    "mirroring": ("Mirroring", "A share of the traffic is copied to another version; its answers are thrown away."),
    "maintenance": ("Maintenance", "Every request is answered 503 with your message."),
    "caching": ("Cache", "Answers are kept and served again, as HTTP's own rules allow (RFC 9111)."),
    "compression": ("Compression", "Answers are compressed as clients accept it."),
    "upstream_tls": ("TLS to targets", "How https targets are verified, and who the gateway is to them."),
    "websockets": ("WebSockets", "Limits for connections that clients upgrade."),
    "upstream_credentials": ("Credentials for targets", "Fields by which the gateway shows its targets who it is."),
    "conditions": ("Conditions", "Header fields, query parameters and path parameters that must match too."),
    "rewrite": ("Rewrite", "The path that the upstream sees, by regular expression."),
    "transformation": (
        "Transformation",
        "Fields, parameters and JSON members that are set, added, removed or renamed.",
    ),
    "aggregation": ("Aggregation", "One answer made of several calls in parallel."),
    "discovery": ("Discovery", "Targets that register themselves, or that DNS names."),
}

# By policy and path of form fields, or by the member's name alone: label and hint.
WORDS: dict[str, tuple[str, str]] = {
    "ip_access.allow": ("Let in", "Addresses and networks, such as 10.0.0.0/8 or 2001:db8::1. Empty: everybody."),
    "ip_access.deny": ("Keep out", "These are refused, even if they are let in above."),
    "access.credentials": ("A caller must bring", ""),
    "access.scopes": ("Scopes", "It must have all of them. Empty: none is asked for."),
    "access.roles": ("Roles", "It must have one of them. Empty: none is asked for."),
    "access.issuers": ("Issuers", "By name: only their tokens count. Empty: those of every issuer."),
    "access.claims": ("Claims", "A token must have all of them."),
    "cors.origins": (
        "Origins",
        "https://app.example.com, https://*.example.com for all hosts below a domain, or * for any. Empty: none.",
    ),
    "cors.methods": ("Methods", "That preflights grant. Empty: what the browser asks for."),
    "cors.headers": ("Request fields", "That preflights grant. Empty: what the browser asks for."),
    "cors.expose": ("Readable fields", "Of answers, beside those of limits, Retry-After and X-Request-ID."),
    "cors.credentials": ("With credentials", "Pages may send cookies. Not with *."),
    "cors.max_age_s": ("Preflights are remembered for", ""),
    "client_certificates.accepted": (
        "Accepted",
        "In each row, all that is filled in must fit. A fingerprint is the SHA-256 of the certificate, in hexadecimal.",
    ),
    "restrictions.ips": ("Only from", "Addresses and networks. Empty: anywhere."),
    "restrictions.services": ("Only to", "Services of its application. Empty: all of them."),
    "restrictions.hours": ("Only at", "Spans of days and hours. Empty: always."),
    "restrictions.time_zone": ("Time zone of these hours", "Europe/Berlin, say."),
    "restrictions.quota": ("A quota of its own", ""),
    "restrictions.quota__limit": ("Requests", ""),
    "restrictions.quota__period": ("In each", "By the calendar, in UTC."),
    "rule.limit": ("Limit", "In each window or period; of concurrency: at once."),
    "rule.algorithm": ("Counted by", "A token bucket is smooth and lets bursts pass; a quota counts by the calendar."),
    "rule.window_s": ("Window", "Not of quotas and concurrency."),
    "rule.period": ("Period", "Of quotas, in UTC."),
    "rule.burst": ("At once", "Of a token bucket, empty: the limit; of spike arrest, empty: 1."),
    "rule.queue": ("May wait", "Of a leaky bucket."),
    "rule.max_wait_ms": ("Wait at most", "Of a leaky bucket."),
    "rule.per": ("Has a budget of its own", "Several make a combination: each key at each endpoint."),
    "rule.services": ("Services", "Empty: all."),
    "rule.routes": ("Routes", "By name. Empty: all."),
    "rule.applications": ("Applications", "Empty: all."),
    "rule.roles": ("Roles", "Of users. Empty: everybody."),
    "rule.methods": ("Methods", "Empty: all."),
    "rule.paths": ("Paths", "Patterns such as /api/v1/orders/*. Empty: all."),
    "rule.mode": ("Who counts", "Together needs Redis."),
    "rule.outage": (
        "While Redis is away",
        "",
    ),
    "rule.alert": ("Tell the alert channels when it refuses", ""),
    "rules.algorithms": (
        "Algorithms",
        "HS256 and its like need a shared secret; an issuer never has both kinds.",
    ),
    "rules.audiences": ("Audiences", "One of them must be in the claim aud. Empty: not looked at."),
    "rules.jwks_url": ("Keys from", "The issuer's jwks_uri; fetched and renewed in the background."),
    "rules.jwks": ("Keys", "A JSON Web Key Set, where there is no URL."),
    "rules.secret": ("Shared secret", "A reference; for HS256 and its like."),
    "rules.decryption_key": ("Decrypted with", "A reference; for encrypted tokens (A256GCM)."),
    "rules.leeway_s": ("Clocks may differ by", ""),
    "rules.max_age_s": ("Not older than", "Since iat. Empty: until exp."),
    "rules.typ": ("Type", "What the header's typ must be, such as at+jwt."),
    "rules.claims": ("Required claims", ""),
    "rules.scope_claim": ("Scopes from", "Members by dots."),
    "rules.roles_claim": ("Roles from", "realm_access.roles, say."),
    "rules.permissions_claim": ("Permissions from", ""),
    "rules.application_claim": ("Application from", "azp, say. Empty: the application above."),
    "rules.role_map": ("Roles there and here", ""),
    "rules.headers": ("Claims to header fields", "Services get them; clients cannot forge them."),
    "rules.introspection": ("Ask the issuer about tokens that are no JWT (RFC 7662)", ""),
    "rules.introspection__url": ("Endpoint", ""),
    "rules.introspection__client_id": ("Client ID", ""),
    "rules.introspection__client_secret": ("Client secret", "A reference."),
    "rules.introspection__cache_s": ("Remember answers for", ""),
    "rules.introspection__timeout_ms": ("Wait at most", ""),
    "rules.introspection__token_prefix": ("Its tokens begin with", "Empty: it is shown what is no other issuer's."),
    "strategy": ("Strategy", "IP hash keeps an address where it is; peak EWMA prefers the fastest of two."),
    "sticky": ("Sticky sessions", ""),
    "registration": ("Registration: instances register themselves", ""),
    "discovery.registration__ttl_s": ("Counts for", "Unless it is renewed."),
    "redis": ("Also those that services write to Redis", "REDIS_URL."),
    "dns": ("DNS: the addresses behind a name", ""),
    "static": ("Configured targets count", "A fallback counts while nothing is found."),
    "discovery.dns__type": ("Record", ""),
    "discovery.dns__port": ("Port", "Empty: that of the version's URL; SRV names its own."),
    "discovery.dns__interval_s": ("Ask every", "Sooner, if the answer's TTL ends."),
    "discovery.dns__version": ("Version", "Empty: the one that answers when nobody names one."),
    "discovery.dns__server": ("Name server", "10.0.0.2 or 10.0.0.2:8600. Empty: the host's."),
    "cookie": ("Cookie", "Names a target by a signed word, never by its address."),
    "ttl_s": ("Lives for", "Empty: until the browser ends."),
    "active": ("Active checks: probe each target", ""),
    "passive": ("Passive checks: watch real traffic", ""),
    "health_checks.active__path": ("Path", "Empty: the service's health endpoint, else /."),
    "interval_s": ("Every", ""),
    "timeout_s": ("Give up after", ""),
    "healthy_threshold": ("Well after", "In a row."),
    "unhealthy_threshold": ("Ill after", "In a row."),
    "status_from": ("Healthy from status", ""),
    "status_to": ("Up to status", ""),
    "error_percent": ("Eject at", "Share of requests that fail."),
    "min_requests": ("Of at least", ""),
    "window_s": ("Within", ""),
    "eject_s": ("Leave alone for", ""),
    "failures": ("Opens after", "In a row. Empty: CIRCUIT_BREAKER_FAILURES."),
    "open_s": ("Stays open for", "Then one request may try. Empty: CIRCUIT_BREAKER_TIMEOUT."),
    "count_500": ("Count 500 as a failure", "Careful: any client that can provoke a 500 can then open the circuit."),
    "enabled": ("On", ""),
    "caching.enabled": ("Keep answers", ""),
    "circuit_breaker.enabled": ("Break circuits", ""),
    "compression.enabled": ("Compress answers", ""),
    "websockets.enabled": ("Allow WebSockets", ""),
    "attempts": ("Further tries", "After the first; each goes to another target."),
    "on": ("When", "Any of connect, reset, timeout, 502, 503, 504."),
    "base_ms": ("Wait from", "Random up to this, doubling with each try."),
    "max_ms": ("Wait at most", ""),
    "budget_percent": ("Budget", "Of requests may be retries, so that they cannot add to an outage."),
    "max_connections": ("At once per target", "For each worker."),
    "max_waiting": ("May wait", "Requests beyond are refused at once."),
    "wait_ms": ("Wait at most", ""),
    "adaptive": (
        "Find the limit by watching latency",
        "Applications of low priority are refused first when it is reached.",
    ),
    "min_limit": ("Never below", "While it watches latency."),
    "max_limit": ("Never above", ""),
    "percent": ("Share", "Of the requests."),
    "mirroring.version": ("Version", "It gets the copies."),
    "max_body_bytes": ("Largest body", "Requests with a larger one are not copied."),
    "message": ("Message", "What clients read."),
    "retry_after_s": ("Come back after", ""),
    "default_ttl_s": ("Keep for", "Answers that say nothing about it. Empty: not."),
    "heuristic": ("Guess from Last-Modified", "A tenth of an answer's age, as RFC 9111 suggests."),
    "max_object_bytes": ("Largest answer", ""),
    "stale_while_revalidate_s": ("Stale while revalidating", "Empty: as the answer says."),
    "stale_if_error_s": ("Stale on errors", "Empty: as the answer says."),
    "serve_stale_when_down": ("Serve the last answer when all targets are down", "However old; it is marked stale."),
    "collapse": ("Ask once for many", "Clients that want the same at the same moment share one request."),
    "shared": ("Share between workers and hosts", "Through Redis (REDIS_URL)."),
    "tag_header": ("Field with tags", "For purging by tag."),
    "heed_clients": ("Heed clients", "Their Cache-Control may ask for something fresher."),
    "algorithms": ("Algorithms", "Preferred first: zstd, br, gzip."),
    "min_bytes": ("From", ""),
    "types": ("Media types", ""),
    "with_cookies": (
        "Answers that set cookies too",
        "Secrets beside text of an attacker's choice can be guessed then.",
    ),
    "verify": ("Verify certificates", "Switch it off only where nobody can be in between."),
    "ca_pem": ("Authorities (PEM)", "Empty: those of the system."),
    "server_name": ("Server name", "Sent and verified. Empty: the target's host."),
    "client_certificate": ("Client certificate", "secret://file/… or secret://env/UPSTREAM_…"),
    "client_key": ("Its key", "secret://file/… or secret://env/UPSTREAM_…"),
    "min_version": ("At least TLS", ""),
    "max_message_bytes": ("Largest message", ""),
    "idle_s": ("Close when silent for", ""),
    "origins": ("Origins", "Of web pages that may connect. Empty: CORS_ORIGINS."),
    "query_key": ("Key in the query", "A parameter that may carry the key. Empty: none may."),
    "conditions.headers": ("Header fields", "All must hold. Expressions are RE2, on the whole value."),
    "conditions.query": ("Query parameters", ""),
    "conditions.path_parameters": ("Path parameters", "Of {name} in the route's path."),
    "pattern": ("Expression", "RE2, on the path that clients see: ^/api/v1/users/(.*)"),
    "replacement": ("Becomes", r"\1 is the first group: /v1/people/\1"),
    "transformation.request": ("Requests", ""),
    "transformation.response": ("Answers", ""),
    "transformation.request__headers": ("Header fields of requests", ""),
    "transformation.request__query": ("Query parameters of requests", ""),
    "transformation.request__body": ("JSON bodies of requests", ""),
    "transformation.response__headers": ("Header fields of answers", ""),
    "transformation.response__body": ("JSON bodies of answers", ""),
    "set": ("Set", "In the place of what is there. Values may hold ${header.x-id|none}, ${query.q}, ${path.id}."),
    "add": ("Add", "Beside what is there."),
    "remove": ("Remove", ""),
    "transformation.request__body__set": ("Set", "A text is a template, as above; anything else is itself."),
    "transformation.response__body__set": ("Set", "A text is a template, as above; anything else is itself."),
    "rename": ("Rename", ""),
    "transformation.request__body__max_bytes": ("Largest body", "A larger one is refused with 413."),
    "transformation.response__body__max_bytes": ("Largest body", "A larger one is answered 502."),
    "upstream_credentials": (
        "Credentials",
        "Secrets stay on the gateway's hosts: here stand references to them, as in "
        "Bearer {secret://env/UPSTREAM_ORDERS_TOKEN}.",
    ),
}

# Heads of columns, and what stands in an empty one, by the document's member.
COLUMNS: dict[str, tuple[str, str]] = {
    "claim": ("Claim", "email"),
    "fingerprint": ("Fingerprint", "64 hexadecimal digits"),
    "subject": ("Subject", "CN=robot,O=Acme"),
    "san": ("Name in it", "robot.acme.example"),
    "name": ("Name", "x-tag"),
    "value": ("Value", "${header.x-id}"),
    "header": ("Header field", "authorization"),
    "path": ("Member", "customer.name"),
    "to": ("New name", "fullName"),
    "upstream_credentials.value": ("Value", "Bearer {secret://env/UPSTREAM_ORDERS_TOKEN}"),
}
