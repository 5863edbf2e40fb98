-- Webhooks, and the outbox of what is on its way to them. A delivery is written in the transaction that writes its event.
set local search_path = router;

do $$ begin
  if not exists (select from pg_roles where rolname = 'retinue_courier') then create role retinue_courier login; end if;
end $$;
alter role retinue_courier set search_path = router;
alter role retinue_courier set plan_cache_mode = force_generic_plan;
alter role retinue_courier set enable_seqscan = off;
alter role retinue_courier set enable_bitmapscan = off;
alter role retinue_courier set enable_hashjoin = off;
alter role retinue_courier set enable_mergejoin = off;

create table webhooks (
  tenant_id text not null, webhook_id text not null, kind text not null check (kind in ('standard', 'feishu')),
  url text not null, host text not null, event_types text[] not null,
  secret bytea,                                 -- sealed; null: unsigned
  state text not null default 'active' check (state in ('active', 'off', 'gone')),
  rest_time timestamptz,                        -- its server asked to be left alone until then
  create_time timestamptz not null default clock_timestamp(),
  primary key (tenant_id, webhook_id));
create index webhooks_active on webhooks (tenant_id) where state = 'active';

create table deliveries (
  tenant_id text not null, delivery_id text not null,
  webhook_id text not null,                     -- no foreign key: a run's end must not wait for, nor fail by, a webhook's removal
  log_id text, contact text not null default '', token bigint not null default 0, n int not null default 0,
  event_type text not null, session_id text not null default '', run_id text not null default '',
  data jsonb,                                   -- null: larger than is sent
  event_time timestamptz not null,
  state text not null default 'pending' check (state in ('pending', 'delivered', 'dead')),
  attempt int not null default 0,               -- raised by every claim: what a former courier has to say is refused by it
  last_result text not null default '',
  due_time timestamptz not null default clock_timestamp(),      -- future while a courier is at it, or between two attempts
  end_time timestamptz,
  check ((state = 'pending') = (end_time is null)),
  primary key (tenant_id, delivery_id),
  foreign key (tenant_id, log_id) references logs on delete cascade);       -- a deleted contact is told of to nobody
create index deliveries_due on deliveries (webhook_id, due_time) where state = 'pending';
create index deliveries_of_webhook on deliveries (tenant_id, webhook_id, delivery_id);
create index deliveries_of_log on deliveries (tenant_id, log_id);
create index deliveries_ended on deliveries (end_time) where end_time is not null;

do $$ declare t text; begin
  foreach t in array array['webhooks', 'deliveries'] loop
    execute format('alter table router.%I enable row level security; alter table router.%I force row level security;
      create policy wall on router.%I using (tenant_id = (select nullif(current_setting(''app.tenant_id'', true), '''')))', t, t, t);
    execute format('grant select, insert, update, delete on router.%I to retinue_router', t);
    -- The courier works for all tenants, and has no right to any other table.
    execute format('create policy courier on router.%I to retinue_courier using (true)', t);
  end loop;
end $$;
grant usage on schema router to retinue_courier;
grant select (tenant_id, webhook_id, kind, url, host, secret, state, rest_time), update (state, rest_time) on webhooks to retinue_courier;
grant select, delete, update (state, attempt, last_result, due_time, end_time) on deliveries to retinue_courier;

-- Puts events that were just written on their way to those webhooks of the tenant that ask for them. What is larger than
-- p_size_max is sent without its data. Where a webhook should have been sent something p_behind_max ago, it gets no more
-- than the record of what is new: what waits is bounded by time, which costs one look into the index, where a count
-- would cost a run's end as much as there is.
create function send_events_1(t text, p_log text, p_token bigint, ev jsonb, p_size_max int, p_behind_max interval) returns void language plpgsql as $$
begin
  insert into deliveries (tenant_id, delivery_id, webhook_id, log_id, contact, token, n, event_type, session_id, run_id, data, event_time,
      state, last_result, end_time)
    select t, 'dlv_' || replace(uuidv7()::text, '-', ''), w.webhook_id, p_log,
      coalesce((select l.contact from logs l where l.tenant_id = t and l.log_id = p_log),
        (select r.contact from runs r where r.tenant_id = t and r.run_id = e.run_id), ''),
      p_token, e.n, e.type, e.session_id, coalesce(e.run_id, ''), case when octet_length(e.data::text) <= p_size_max then e.data end, e.time,
      case when b.late then 'dead' else 'pending' end, case when b.late then 'its receiver is too far behind' else '' end,
      case when b.late then clock_timestamp() end
    from jsonb_to_recordset(ev) as e (n int, type text, data jsonb, run_id text, session_id text, time timestamptz)
      join webhooks w on w.tenant_id = t and w.state = 'active' and e.type = any (w.event_types),
      lateral (select exists (select from deliveries d where d.webhook_id = w.webhook_id and d.state = 'pending'
        and d.due_time < clock_timestamp() - p_behind_max) as late offset 0) b
    order by e.n;
end $$;

-- Mended: events reach the outbox with their own commit, whichever version of a worker writes them.
create or replace function write_events_1(t text, p_log text, p_token bigint, ev jsonb) returns jsonb language plpgsql as $$
declare l record; written jsonb; before jsonb := '[]';
begin
  if jsonb_array_length(ev) = 0 then return '[]'; end if;
  select x.last_token, x.last_n into l from logs x where x.tenant_id = t and x.log_id = p_log;
  if l.last_token = p_token and (ev -> 0 ->> 'n')::int <= l.last_n then
    select coalesce(jsonb_agg(jsonb_build_object('n', e.n, 'prev', e.prev_token || '-' || e.prev_n, 'type', e.type, 'data', e.data,
        'run_id', e.run_id, 'session_id', e.session_id, 'time', e.time) order by e.n), '[]') into before
      from events e where e.tenant_id = t and e.log_id = p_log and e.token = p_token and e.n >= (ev -> 0 ->> 'n')::int;
    select coalesce(jsonb_agg(x order by (x ->> 'n')::int), '[]') into ev from jsonb_array_elements(ev) x where (x ->> 'n')::int > l.last_n;
    if jsonb_array_length(ev) = 0 then return before; end if;
  end if;
  with e as (
    select e.*, lag(e.n) over (order by e.n) as before from jsonb_to_recordset(ev) as e (n int, type text, data jsonb, run_id text, session_id text, time timestamptz)
  ), w as (
    insert into events (tenant_id, log_id, token, n, prev_token, prev_n, session_id, run_id, type, data, time)
      select t, p_log, p_token, e.n, case when e.before is null then l.last_token else p_token end, coalesce(e.before, l.last_n),
        e.session_id, coalesce(e.run_id, ''), e.type, e.data, coalesce(e.time, clock_timestamp()) from e order by e.n
      returning *
  ) select jsonb_agg(jsonb_build_object('n', w.n, 'prev', w.prev_token || '-' || w.prev_n, 'type', w.type, 'data', w.data,
      'run_id', w.run_id, 'session_id', w.session_id, 'time', w.time) order by w.n) into written from w;
  update logs x set last_token = p_token, last_n = (written -> -1 ->> 'n')::int where x.tenant_id = t and x.log_id = p_log;
  if exists (select from webhooks x where x.tenant_id = t and x.state = 'active') then
    perform send_events_1(t, p_log, p_token, written, 65536, interval '1 day');
  end if;
  return before || written;
end $$;

-- Makes a webhook; false where the tenant has p_max of them.
create function create_webhook_1(t text, p_webhook text, p_kind text, p_url text, p_host text, p_types text[], p_secret bytea, p_max int)
returns bool language plpgsql as $$
begin
  perform set_config('app.tenant_id', t, true);
  perform pg_advisory_xact_lock(hashtextextended('webhooks ' || t, 0));         -- of two at once, the second counts the first
  if (select count(*) from webhooks x where x.tenant_id = t) >= p_max then return false; end if;
  insert into webhooks (tenant_id, webhook_id, kind, url, host, event_types, secret) values (t, p_webhook, p_kind, p_url, p_host, p_types, p_secret);
  return true;
end $$;

-- Up to p_limit webhooks after p_after that have something pending, in the order of their ids. Jumps from webhook to webhook in
-- the index, so that a look costs as many steps as there are webhooks with something pending, however much that is.
create function look_for_due_1(p_after text, p_limit int)
returns table (webhook_id text, tenant_id text, host text, state text, is_due bool) language sql stable as $$
  with recursive w (webhook_id, i) as (
    (select d.webhook_id, 1 from deliveries d where d.state = 'pending' and d.webhook_id > p_after order by d.webhook_id limit 1)
    union all
    (select x.webhook_id, w.i + 1 from w, lateral (
      select d.webhook_id from deliveries d where d.state = 'pending' and d.webhook_id > w.webhook_id order by d.webhook_id limit 1) x
      where w.i < p_limit))
  select w.webhook_id, d.tenant_id, coalesce(h.host, ''), coalesce(h.state, 'removed'),
    d.due_time <= clock_timestamp() and (h.rest_time is null or h.rest_time <= clock_timestamp())
  from w cross join lateral (select d.tenant_id, d.due_time from deliveries d where d.webhook_id = w.webhook_id and d.state = 'pending'
      order by d.due_time limit 1) d
    left join webhooks h on h.tenant_id = d.tenant_id and h.webhook_id = w.webhook_id
  order by w.webhook_id
$$;

-- Takes the delivery that is due first from each of some webhooks, for so long: who is not heard of by then has lost it.
create function claim_deliveries_1(p_webhooks text[], p_lease interval)
returns table (tenant_id text, delivery_id text, webhook_id text, contact text, token bigint, n int, event_type text, session_id text,
  run_id text, data jsonb, event_time timestamptz, attempt int, kind text, url text, secret bytea) language sql as $$
  -- Materialized: as a part of the join it could be asked anew, and would take the next one each time.
  with taken as materialized (
    select d.tenant_id, d.delivery_id, h.kind, h.url, h.secret
    from unnest(p_webhooks) as u (webhook_id) cross join lateral (
        select d.tenant_id, d.delivery_id from deliveries d where d.webhook_id = u.webhook_id and d.state = 'pending' and d.due_time <= clock_timestamp()
        order by d.due_time limit 1 for update skip locked) d
      join webhooks h on h.tenant_id = d.tenant_id and h.webhook_id = u.webhook_id and h.state = 'active')
  update deliveries x set attempt = x.attempt + 1, due_time = clock_timestamp() + p_lease
  from taken h where x.tenant_id = h.tenant_id and x.delivery_id = h.delivery_id
  returning x.tenant_id, x.delivery_id, x.webhook_id, x.contact, x.token, x.n, x.event_type, x.session_id, x.run_id, x.data, x.event_time,
    x.attempt, h.kind, h.url, h.secret
$$;

-- Records what became of an attempt: delivered, dead, or pending until p_delay has passed. False: a later attempt has begun,
-- or the delivery is gone. p_rest: how long the webhook's server wants to be left alone; p_gone: it wants no more.
create function end_attempt_1(t text, p_delivery text, p_webhook text, p_attempt int, p_state text, p_result text, p_delay interval,
  p_rest interval, p_gone bool) returns bool language plpgsql as $$
begin
  if p_gone then
    update webhooks x set state = 'gone' where x.tenant_id = t and x.webhook_id = p_webhook and x.state = 'active';
  elsif p_rest is not null then
    update webhooks x set rest_time = clock_timestamp() + p_rest where x.tenant_id = t and x.webhook_id = p_webhook;
  end if;
  update deliveries x set state = p_state, last_result = p_result, due_time = clock_timestamp() + coalesce(p_delay, interval '0'),
      end_time = case when p_state <> 'pending' then clock_timestamp() end
    where x.tenant_id = t and x.delivery_id = p_delivery and x.state = 'pending' and x.attempt = p_attempt;
  return found;
end $$;
