-- How much waits and at which pace it moves, for one tenant and in all; and keys that were kept long enough.
set local search_path = router;

-- Times and states: the sweeper's role still sees no name and no text.
grant select (create_time, run_at) on runs to retinue_sweep;
grant select (create_time) on usage_logs to retinue_sweep;
create index runs_dead_open on runs (tenant_id) where dead = 'open';
-- Rows come in the order of time, so that a summary of each range of pages finds the last seconds, and costs a commit nothing.
create index usage_recent on usage_logs using brin (create_time) with (autosummarize = on);

-- How much waits over all tenants, by class (task or not); no row for a class in which nothing does. At most p_bound runs are
-- looked at: `counted` is how many were. Called as retinue_sweep.
create function load_1(p_bound int) returns table (task bool, waiting int, later int, oldest_s double precision, counted int)
language sql stable set enable_seqscan = off as $$
  select starts_with(q.log_id, 'tsk_'), count(*) filter (where q.due <= clock_timestamp())::int,
    count(*) filter (where q.due > clock_timestamp())::int,
    greatest(extract(epoch from clock_timestamp() - min(q.due)), 0)::double precision, count(*)::int
  from (select r.log_id, greatest(r.create_time, r.run_at) as due from runs r where r.state = 'queued' limit p_bound) q
  group by 1
$$;

-- Runs that were set aside and nobody decided about, over all tenants, up to p_bound; and runs that ended in the last p_window.
create function moved_1(p_bound int, p_window interval) returns table (dead int, ended int)
language sql stable set enable_seqscan = off as $$
  select (select count(*)::int from (select from runs r where r.dead = 'open' limit p_bound) d),
    (select count(*)::int from (select from usage_logs u where u.create_time > clock_timestamp() - p_window limit p_bound) e)
$$;

-- At which pace a tenant's queue drains: runs that ended within the last window_s seconds, which are no more than the queue
-- has been there for, 1 to 10. later_s: when the first of those whose time has not come may begin; null if there is none.
create function queue_drain_1(t text, p_bound int)
returns table (waiting int, ended int, window_s double precision, later_s double precision) language plpgsql as $$
declare q record;
begin
  select * into q from queue_pace_1(t, p_bound);                  -- sets the tenant
  waiting := q.waiting;
  window_s := least(greatest(q.oldest_s, 1), 10);
  select count(*) into ended from usage_logs u
    where u.tenant_id = t and u.create_time > clock_timestamp() - make_interval(secs => window_s);       -- index usage_by_time
  select extract(epoch from min(r.run_at) - clock_timestamp()) into later_s from runs r
    where r.tenant_id = t and r.state = 'queued' and r.run_at > clock_timestamp();                       -- index runs_queued
  return next;
end $$;

-- A deleted contact's keys, removed once nobody may repeat them any more. By time alone, so that whoever does it sees no key.
create index deleted_keys_time on deleted_keys (delete_time);
grant select (delete_time), delete on deleted_keys to retinue_sweep;
create function purge_keys_1(p_age interval, p_most int) returns int language plpgsql as $$
declare last timestamptz; n int;
begin
  select max(k.delete_time) into last from (select x.delete_time from deleted_keys x
    where x.delete_time < clock_timestamp() - p_age order by x.delete_time limit p_most) k;
  delete from deleted_keys x where x.delete_time <= last;
  get diagnostics n = row_count;
  return n;
end $$;
