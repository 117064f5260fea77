-- What Redis decides for all workers, at once and by its own clock.
--
-- KEYS are buckets. ARGV[1] says what to do; six arguments follow for each bucket: the letter of its algorithm, a cost,
-- and four more. Times in µs are those of the epoch; what lasts less than a window is counted in ns, relative to now, so
-- that a number never loses digits (beyond 2^53). The algorithms are those of access/limits/algorithms.py. A refusal
-- writes only what it saw of a clock that jumped back: from then on that holds, and so does the time that it told.
--
--   charge  All charges are made, or none. More: how much may be taken beyond the cost, for a slice, and two or three
--           numbers of the policy. Answers five numbers for each: whether it is admitted, what remains, µs to wait,
--           µs until reset, and what was taken beyond the cost.
--   back    Undoes charges.
--   hold    Says how many places of a concurrency limit a worker holds, where Redis has forgotten it, and that it lives.
--   set     The same, whatever Redis believes.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local SLACK_MS = 1000 -- that keys live longer than they must
local SHARE = 4       -- a slice takes one part in so many of what is left

local call, floor, ceil, min, max = redis.call, math.floor, math.ceil, math.min, math.max
local format, match = string.format, string.match

local function keep(key, value, us)
  call('SET', key, value, 'PX', format('%.0f', ceil(us / 1000) + SLACK_MS))
end

-- --- rates: a moment in µs and the ns beyond it ---
local function backlog(key, longest) -- and whether it was longer
  local us, ns = match(call('GET', key) or '', '^(%d+) (%d+)$')
  if not us then return 0, false end
  local found = (us - now) * 1000 + ns
  return max(0, min(found, longest)), found > longest
end

local function keep_backlog(key, ns)
  local us = floor(ns / 1000)
  keep(key, format('%.0f %.0f', now + us, ns - us * 1000), us)
end

local function token_bucket(key, cost, extra, interval, span)
  local before, moved = backlog(key, span)
  local used = before + interval * cost
  if used > span then
    local wait = ceil((used - span) / 1000)
    return {false, floor((span - before) / interval), wait, wait, 0, before, moved = moved}
  end
  local left = floor((span - used) / interval)
  local taken = min(extra, floor(left / SHARE))
  used = used + taken * interval
  return {true, left - taken, 0, ceil(used / 1000), taken, used}
end

-- Nearly every request has one token bucket alone, and what follows need not even be made for it.
if ARGV[1] == 'charge' and #KEYS == 1 and ARGV[2] == 'g' then
  local cost = ARGV[3] + 0
  local look = token_bucket(KEYS[1], cost, ARGV[4] + 0, ARGV[5] + 0, ARGV[6] + 0)
  if look.moved or look[1] and cost + look[5] > 0 then keep_backlog(KEYS[1], look[6]) end
  return {look[1] and 1 or 0, look[2], look[3], look[4], look[5]}
end

local function leaky_bucket(key, cost, extra, interval, longest)
  local wait, moved = backlog(key, longest + interval * cost)
  if wait > longest then
    return {false, 0, ceil((wait - longest) / 1000), ceil(wait / 1000), 0, wait, moved = moved}
  end
  local after = wait + interval * cost
  local left = max(0, floor((longest - after) / interval) + 1)
  return {true, left, ceil(wait / 1000), ceil(after / 1000), 0, after}
end

-- --- windows: their start and length in µs, what was admitted in this one and in the one before ---
local function windows(key, length, count) -- and whether they have moved on, or back
  local start = now - now % length
  local known, known_length, current, previous = match(call('GET', key) or '', '^(%d+) (%d+) (%d+) (%d+)$')
  if not known then return start, 0, 0, false end
  known, known_length, current, previous = known + 0, known_length + 0, current + 0, previous + 0
  if known_length == length then
    if start == known + length then return start, 0, current, true end
    if start > known + length then return start, 0, 0, true end
    return start, current, previous, start ~= known -- this one, or the clock jumped back
  end
  if now >= known + count * known_length then return start, 0, 0, true end
  return start, current + previous, 0, true -- other windows than before: what they held counts as happening now
end

local function keep_windows(key, start, length, current, previous, count)
  keep(key, format('%.0f %.0f %.0f %.0f', start, length, current, previous), start + count * length - now)
end

local function sliding_window(key, cost, extra, length, limit)
  local start, current, previous, moved = windows(key, length, 2)
  local left = start + length - now
  local used = current + ceil(previous * left / length)
  if used + cost > limit then
    local room, wait = limit - cost
    if room >= current then
      wait = left - floor((room - current) * length / previous)
    else
      wait = left + length - floor(room * length / current)
    end
    local reset = current > 0 and left + length or left
    return {false, max(0, limit - used), wait, reset, 0, start, current, previous, moved = moved}
  end
  local remaining = limit - used - cost
  local taken = min(extra, floor(remaining / SHARE))
  return {true, remaining - taken, 0, left + length, taken, start, current + cost + taken, previous}
end

local function fixed_window(key, cost, extra, length, limit)
  local start, current, _, moved = windows(key, length, 1)
  local left = start + length - now
  if current + cost > limit then
    return {false, max(0, limit - current), left, left, 0, start, current, moved = moved}
  end
  local remaining = limit - current - cost
  local taken = min(extra, floor(remaining / SHARE))
  return {true, remaining - taken, 0, left, taken, start, current + cost + taken}
end

-- --- the calendar: UTC days and months ---
local DAY = 86400 * 1000000

local function days_before(year, month) -- since the epoch, of the month's first day (Howard Hinnant, days_from_civil)
  if month <= 2 then year = year - 1 end
  local era = floor(year / 400)
  local of_era = year - era * 400
  local of_year = floor((153 * ((month + 9) % 12) + 2) / 5)
  return era * 146097 + of_era * 365 + floor(of_era / 4) - floor(of_era / 100) + of_year - 719468
end

local function period_of(kind)
  local day = floor(now / DAY)
  if kind == 'd' then return day * DAY, (day + 1) * DAY end
  local shifted = day + 719468
  local era = floor(shifted / 146097)
  local of_era = shifted - era * 146097
  local year = floor((of_era - floor(of_era / 1460) + floor(of_era / 36524) - floor(of_era / 146096)) / 365)
  local of_year = of_era - (365 * year + floor(year / 4) - floor(year / 100))
  local month = (floor((5 * of_year + 2) / 153) + 2) % 12 + 1
  year = year + era * 400 + (month <= 2 and 1 or 0)
  return days_before(year, month) * DAY, days_before(year + floor(month / 12), month % 12 + 1) * DAY
end

local function quota(key, cost, extra, _, limit, _, kind)
  local start, finish = period_of(kind)
  local known, used = match(call('GET', key) or '', '^(%d+) (%d+)$')
  used = known and known + 0 >= start and used + 0 or 0
  if used + cost > limit then
    local moved = known and known + 0 ~= start
    return {false, max(0, limit - used), finish - now, finish - now, 0, start, used, finish, moved = moved}
  end
  local remaining = limit - used - cost
  local taken = min(extra, floor(remaining / SHARE))
  return {true, remaining - taken, 0, finish - now, taken, start, used + cost + taken, finish}
end

-- --- a log: a sorted set with a member for each unit of cost ---
local function log_of(key, length)
  call('ZREMRANGEBYSCORE', key, '-inf', format('%.0f', now - length))
  local newest = call('ZREVRANGE', key, 0, 0, 'WITHSCORES')[2]
  if newest and newest + 0 > now then -- the clock jumped back: that counts as happening now
    for _, member in ipairs(call('ZRANGEBYSCORE', key, format('(%.0f', now), '+inf')) do
      call('ZADD', key, format('%.0f', now), member)
    end
    newest = now
  end
  return call('ZCARD', key), newest
end

local function sliding_log(key, cost, extra, length, limit)
  local used, newest = log_of(key, length)
  local free = limit - used
  if cost > free then
    local at = min(cost - free, used) - 1 -- the place of the one whose end makes room
    local oldest = call('ZRANGE', key, at, at, 'WITHSCORES')[2]
    return {false, max(0, free), oldest and oldest + length - now or 0, newest and newest + length - now or 0, 0}
  end
  local taken = min(extra, floor((free - cost) / SHARE))
  return {true, free - cost - taken, 0, length, taken, used}
end

local function keep_log(key, units, length, number)
  local score = format('%.0f', now)
  while units > 0 do
    units = units - call('ZADD', key, 'NX', score, score .. ':' .. number)
    number = number + 1
  end
  call('PEXPIRE', key, format('%.0f', ceil(length / 1000) + SLACK_MS))
end

-- --- places: by worker, how many it holds and until when it is believed to live ---
local function places(key, worker, lease)
  local held, own = 0, 0
  local all = call('HGETALL', key)
  for i = 1, #all, 2 do
    local count, ends = match(all[i + 1], '^(%d+) (%d+)$')
    ends = (ends or 0) + 0
    if ends <= now then
      call('HDEL', key, all[i])
    else
      held = held + count
      if all[i] == worker then own = count + 0 end
      if ends > now + lease then call('HSET', key, all[i], format('%.0f %.0f', count, now + lease)) end
    end
  end
  return held, own
end

local function keep_places(key, worker, lease, count)
  if count > 0 then
    call('HSET', key, worker, format('%.0f %.0f', count, now + lease))
    call('PEXPIRE', key, format('%.0f', ceil(lease / 1000) + SLACK_MS))
  else
    call('HDEL', key, worker)
  end
end

local function concurrency(key, cost, extra, lease, limit, worker)
  local held, own = places(key, worker, lease)
  local left = limit - held
  if cost > left then return {false, max(0, left), 0, 0, 0} end
  return {true, left - cost, 0, 0, 0, own + cost}
end

local LOOK = {
  g = token_bucket, q = leaky_bucket, s = sliding_window, f = fixed_window, l = sliding_log, c = concurrency,
  d = quota, m = quota,
}

-- --- what to do ---
local function each(act)
  for i, key in ipairs(KEYS) do
    local at = 6 * i - 4
    act(i, key, ARGV[at], ARGV[at + 1] + 0, ARGV[at + 2] + 0, ARGV[at + 3] + 0, ARGV[at + 4] + 0, ARGV[at + 5])
  end
end

local function charge()
  local looks, reply, allowed = {}, {}, true
  each(function(i, key, letter, cost, extra, one, two, three)
    local look = LOOK[letter](key, cost, extra, one, two, three, letter)
    looks[i] = look
    allowed = allowed and look[1]
  end)
  each(function(i, key, letter, cost, extra, one, two, worker)
    local look = looks[i]
    local taken = allowed and look[5] or 0
    if look.moved or allowed and cost + taken > 0 then
      if letter == 'g' or letter == 'q' then keep_backlog(key, look[6])
      elseif letter == 's' then keep_windows(key, look[6], one, look[7], look[8], 2)
      elseif letter == 'f' then keep_windows(key, look[6], one, look[7], 0, 1)
      elseif letter == 'l' then keep_log(key, cost + taken, one, look[6])
      elseif letter == 'c' then keep_places(key, worker, one, look[6])
      else keep(key, format('%.0f %.0f', look[6], look[7]), look[8] - now) end
    end
    local at = 5 * i - 4
    reply[at], reply[at + 1], reply[at + 2] = look[1] and 1 or 0, look[2] + look[5] - taken, look[3]
    reply[at + 3], reply[at + 4] = look[4], taken
  end)
  return reply
end

local function back()
  each(function(_, key, letter, cost, _, one, two, worker)
    if letter == 'g' then
      local ns = backlog(key, math.huge)
      if ns > 0 then keep_backlog(key, max(0, ns - cost * one)) end
    elseif letter == 's' or letter == 'f' then
      local start, length, current, previous = match(call('GET', key) or '', '^(%d+) (%d+) (%d+) (%d+)$')
      if start then
        local left = format('%s %s %.0f %s', start, length, max(0, current - cost), previous)
        call('SET', key, left, 'KEEPTTL')
      end
    elseif letter == 'd' or letter == 'm' then
      local start, used = match(call('GET', key) or '', '^(%d+) (%d+)$')
      if start then call('SET', key, format('%s %.0f', start, max(0, used - cost)), 'KEEPTTL') end
    elseif letter == 'l' then
      call('ZREMRANGEBYRANK', key, -cost, -1)
    elseif letter == 'c' then
      local _, own = places(key, worker, one)
      keep_places(key, worker, one, own - cost)
    end
  end)
end

local function hold(is_certain)
  each(function(_, key, _, count, _, lease, _, worker)
    local _, own = places(key, worker, lease)
    keep_places(key, worker, lease, (is_certain or own == 0) and count or own)
  end)
end

if ARGV[1] == 'charge' then return charge() end
if ARGV[1] == 'back' then back() else hold(ARGV[1] == 'set') end
return 1
