-- For wrk: another wrong key in every request, all from one address, and a pause so that 32 connections send about
-- 10,000 a second.
local seen = 0

function delay()
  return 2
end

function request()
  seen = seen + 1
  wrk.headers["X-API-Key"] = string.format("km_%048d", seen)
  wrk.headers["X-Forwarded-For"] = "203.0.113.9"
  return wrk.format(nil, nil)
end
