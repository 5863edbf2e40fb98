-- The fair ring: weighted deficit round robin over tenants that have logs waiting. Ids only; every key shares one tag.
-- KEYS[1] = prefix, such as {r:chat}
-- :ring  list of tenants with waiting logs      :on   set of the same       :q:T   list of T's waiting logs
-- :in    set "T|log": in a queue already        :def  hash of deficits      :w     hash of weights, 1 where absent
-- :lim   hash of limits of runs at once         :seen tenant at the head has had its quantum
-- :run:T zset log -> end of lease (in flight)   :bell list of tickets that wake blocked workers: "1", or "T|log" itself
--
-- While nothing waits at all, a log is handed over with the ticket: the worker that it wakes need not ask for it. There is
-- at most one such ticket, the oldest in the bell, and pop looks at it first, so that it never waits behind the ring.
local P, op = KEYS[1], ARGV[1]
if op == 'push' then                       -- tenant, log, tickets to keep at most, now, limit where none is set, lease
  local t, s = ARGV[2], ARGV[3]
  if redis.call('EXISTS', P .. ':ring', P .. ':bell') == 0 then
    local run, limit = P .. ':run:' .. t, tonumber(redis.call('HGET', P .. ':lim', t) or ARGV[6])
    redis.call('ZREMRANGEBYSCORE', run, '-inf', ARGV[5])
    if redis.call('ZCARD', run) < limit then
      redis.call('ZADD', run, ARGV[5] + ARGV[7], s)
      redis.call('RPUSH', P .. ':bell', t .. '|' .. s)
      return 1
    end
  end
  if redis.call('SADD', P .. ':in', t .. '|' .. s) == 0 then return 0 end
  redis.call('RPUSH', P .. ':q:' .. t, s)
  if redis.call('SADD', P .. ':on', t) == 1 then redis.call('RPUSH', P .. ':ring', t) end
  redis.call('RPUSH', P .. ':bell', 1)
  redis.call('LTRIM', P .. ':bell', -tonumber(ARGV[4]), -1)
  return 1
end
if op == 'done' then                                   -- tenant, log: frees the slot
  redis.call('ZREM', P .. ':run:' .. ARGV[2], ARGV[3])
  if redis.call('EXISTS', P .. ':ring') == 1 then
    redis.call('RPUSH', P .. ':bell', 1)
    redis.call('LTRIM', P .. ':bell', -tonumber(ARGV[4]), -1)
  end
  return 1
end
if op == 'held' then                                   -- now, lease, then tenant and log of each: keeps slots of live runs
  for i = 4, #ARGV, 2 do
    redis.call('ZADD', P .. ':run:' .. ARGV[i], ARGV[2] + ARGV[3], ARGV[i + 1])
  end
  return 1
end
if op == 'limits' then                                 -- tenant, limit, weight
  redis.call('HSET', P .. ':lim', ARGV[2], ARGV[3])
  redis.call('HSET', P .. ':w', ARGV[2], ARGV[4])
  return 1
end
-- pop: now, limit where none is set, lease, rounds at most
local now, default_limit, lease = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local head = redis.call('LINDEX', P .. ':bell', 0)
if head and head ~= '1' then
  redis.call('LPOP', P .. ':bell')
  local t, s = string.match(head, '^(.-)|(.*)$')
  return {t, s, redis.call('EXISTS', P .. ':ring')}
end
local rounds = math.min(tonumber(ARGV[5]), 10 * (1 + redis.call('LLEN', P .. ':ring')))
for _ = 1, rounds do
  local t = redis.call('LINDEX', P .. ':ring', 0)
  if not t then break end
  if redis.call('GET', P .. ':seen') ~= t then
    redis.call('SET', P .. ':seen', t)
    redis.call('HINCRBYFLOAT', P .. ':def', t, redis.call('HGET', P .. ':w', t) or 1)
  end
  redis.call('ZREMRANGEBYSCORE', P .. ':run:' .. t, '-inf', now)
  local limit = tonumber(redis.call('HGET', P .. ':lim', t) or default_limit)
  local d = tonumber(redis.call('HGET', P .. ':def', t))
  if d >= 1 and redis.call('ZCARD', P .. ':run:' .. t) < limit then
    local s = redis.call('LPOP', P .. ':q:' .. t)
    if s then
      redis.call('SREM', P .. ':in', t .. '|' .. s)
      redis.call('ZADD', P .. ':run:' .. t, now + lease, s)
      redis.call('HINCRBYFLOAT', P .. ':def', t, -1)
    end
    if redis.call('EXISTS', P .. ':q:' .. t) == 0 then
      redis.call('LPOP', P .. ':ring')
      redis.call('SREM', P .. ':on', t)
      redis.call('DEL', P .. ':seen')
      if d - 1 > 0 then redis.call('HDEL', P .. ':def', t) end   -- credit is not hoarded; a debt is kept
    end
    if s then
      local more = redis.call('EXISTS', P .. ':ring')
      if more == 0 then redis.call('DEL', P .. ':bell') end        -- old tickets would wake workers for nothing
      return {t, s, more}
    end
  else
    if d >= 1 then redis.call('HSET', P .. ':def', t, 1) end     -- at its limit: keeps its turn, hoards nothing
    redis.call('RPUSH', P .. ':ring', redis.call('LPOP', P .. ':ring'))
    redis.call('DEL', P .. ':seen')
  end
end
-- Nothing may be taken now: old tickets would only wake workers for nothing. A later push or done rings again.
redis.call('DEL', P .. ':bell')
return false
