-- For wrk: a path that nobody has asked for before, in every request.
local seen = 0

function request()
  seen = seen + 1
  return wrk.format(nil, "/api/v1/s977/item-" .. seen .. "-" .. math.random(0, 0x7fffffff))
end
