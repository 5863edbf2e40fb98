-- Dead letters: runs that were set aside, until somebody has them asked anew or drops them.
set local search_path = router;

-- A release that came before its migrations can tell, and waits for them.
grant select on migrations to retinue_router;

-- Accepts what a dead letter was asked anew, and closes it, in one commit: asked again, it answers the same new run. A
-- message goes to the end of its contact's log, a task gets a log of its own once more.
-- outcome: accepted | retried (before: run_id is the run in its place) | dropped | full; no row: no such dead letter.
create function retry_dead_letter_1(t text, p_run text, p_new_run text, p_new_log text, p_session text, p_by text, p_traceparent text,
  p_queue_max int, p_later_max int)
returns table (outcome text, run_id text, log_id text, ring bool) language plpgsql as $$
declare r runs; s record; mine text;
begin
  perform set_config('app.tenant_id', t, true);
  select * into r from runs x where x.tenant_id = t and x.run_id = p_run and x.dead is not null;
  if not found then return; end if;
  -- The log's row, as everywhere, so that of two who decide one sees what the other did.
  perform from logs x where x.tenant_id = t and x.log_id = r.log_id for no key update;
  select * into r from runs x where x.tenant_id = t and x.run_id = p_run;
  if not found then return; end if;                               -- deleted with its contact meanwhile
  if r.dead <> 'open' then
    return query select r.dead, r.retried_as, null::text, false; return;
  end if;
  mine := case when r.kind = 'chat' then r.log_id else p_new_log end;
  select * into s from submit_run_2(t, r.contact, mine, r.kind <> 'chat', p_session, p_new_run, r.kind, null, null, r.input, 'enqueue',
    p_by, r.notify_log, p_traceparent, null, p_queue_max, p_later_max, p_run);
  if s.outcome <> 'accepted' then
    return query select s.outcome, null::text, null::text, false; return;
  end if;
  -- What the failed run was asked, and what it said, is told by the run in its place.
  update runs x set dead = 'retried', retried_as = p_new_run, dropped = true where x.tenant_id = t and x.run_id = p_run;
  return query select s.outcome, p_new_run, mine, s.ring;
end $$;

-- Takes a dead letter off the list: dropped | retried (it was asked anew before); no row: no such dead letter.
create function drop_dead_letter_1(t text, p_run text) returns table (outcome text) language plpgsql as $$
declare l text;
begin
  perform set_config('app.tenant_id', t, true);
  select x.log_id into l from runs x where x.tenant_id = t and x.run_id = p_run and x.dead is not null;
  if not found then return; end if;
  perform from logs x where x.tenant_id = t and x.log_id = l for no key update;
  update runs x set dead = 'dropped' where x.tenant_id = t and x.run_id = p_run and x.dead = 'open';
  return query select x.dead from runs x where x.tenant_id = t and x.run_id = p_run;
end $$;
