/* What is known of accounts and devices, and devices that are shown the door: whoami, a device's removal.
 *
 *   whoami, remove       storage -> answer
 *
 * Owns the form in which accounts are told; accounts_admin.c uses it for those of others. The steps are attempt.c's.
 * The loop's thread, but for functions named _run. */
#include "tracker/accounts_private.h"

#include "base/log.h"
#include "base/mem.h"

struct accounts_told *accounts_tell(struct server *server, const struct storage_account *account,
                                    struct storage_device *devices, size_t count)
{
    struct accounts_told *told = xcalloc(1, sizeof *told + (count + 1) * sizeof *told->list);
    told->devices = xcalloc(count + 1, sizeof *told->devices);
    told->copy = *account;
    secret_wipe(told->copy.password, sizeof told->copy.password);
    secret_wipe(told->copy.totp, sizeof told->copy.totp);
    for (size_t i = 0; i < count; i++) {
        struct storage_device *row = &devices[i];
        Tracker__Device *device = &told->devices[i];
        struct swarm_device *peer = swarm_device_find(server->swarm, row->id);
        tracker__device__init(device);
        device->id = (ProtobufCBinaryData){.len = sizeof row->id, .data = row->id};
        device->machine = row->machine;
        device->connected = peer != NULL && swarm_owner(peer) != NULL;
        device->last_seen = device->connected ? wall_seconds() : row->last_seen;
        device->logged_out = row->logged_out;
        device->created = row->created;
        told->list[i] = device;
    }
    tracker__account__init(&told->message);
    told->message.name = told->copy.name;
    told->message.email = told->copy.email;
    told->message.admin = account->admin;
    told->message.created = account->created;
    told->message.email_verified = account->verified;
    told->message.second_factor = account->totp_on;
    told->message.disabled = account->disabled;
    told->message.deleted = account->deleted != 0;
    told->message.waiting = account->waiting;
    told->message.entries = account->entries;
    told->message.quota = account->quota != 0  ? account->quota
                          : server->quota != 0 ? server->quota
                                               : LIMIT_ENTRIES_ACCOUNT;
    told->message.n_devices = count;
    told->message.devices = told->list;
    return told;
}

void accounts_told_free(struct accounts_told *told)
{
    if (told == NULL)
        return;
    free(told->devices);
    free(told);
}

/* --- whoami -------------------------------------------------------------------------------------- */

static void whoami_run(struct storage_job *job, struct storage *storage)
{
    struct attempt *a = attempt_of_storage(job);
    a->known = storage_account_get(storage, a->name, &a->account);
    a->recovery_left = storage_recovery_count(storage, a->name);
    storage_device_each(storage, a->name, attempt_add_device, a);
}

static void whoami_known(struct attempt *a)
{
    struct accounts_told *told =
        accounts_tell(a->session->server, &a->account, a->devices, a->devices_count);
    memcpy(told->copy.name, a->name, sizeof told->copy.name);
    told->message.recovery_codes = a->recovery_left;
    session_answer(a->session, a->id, TRACKER__TRACKER_TYPE__TRACKER_ACCOUNT, &told->message.base);
    accounts_told_free(told);
    attempt_free(a);
}

const char *accounts_whoami(struct session *s, uint32_t id, const void *message)
{
    struct attempt *a = attempt_new(s, id, false);
    if (a != NULL)
        attempt_to_storage(a, whoami_run, false, whoami_known);
    return NULL;
}

/* --- a device's removal ---------------------------------------------------------------------------- */

static void remove_run(struct storage_job *job, struct storage *storage)
{
    struct attempt *a = attempt_of_storage(job);
    size_t found = 0;
    storage_device_each(storage, a->name, attempt_add_device, a);
    for (size_t i = 0; i < a->devices_count; i++)
        if (!a->devices[i].logged_out && memcmp(a->devices[i].id, a->prefix, a->prefix_size) == 0) {
            a->row = a->devices[i];
            found++;
        }
    a->devices_count = 0;
    if (found != 1) {
        attempt_fail(a, TRACKER__FAULT_CODE__FAULT_NOT_FOUND,
                     found == 0 ? "this account has no such device that is logged in"
                                : "more than one device's number begins like that");
        return;
    }
    if (memcmp(a->row.id, a->device, sizeof a->row.id) == 0) {
        attempt_fail(a, TRACKER__FAULT_CODE__FAULT_DENIED,
                     "that is the device you are at: log out instead");
        return;
    }
    a->row.void_before = wall_seconds() + 1;
    a->row.logged_out = true;
    storage_device_put(storage, &a->row);
    attempt_add_device(&a->row, a);
    struct storage_event event = {.when = wall_seconds(),
                                  .what = "device-remove",
                                  .account = a->name,
                                  .device = a->row.id,
                                  .source = a->from};
    storage_audit(storage, &event);
}

static void removed(struct attempt *a)
{
    log_info("%s: %s has removed a device", a->from, a->name);
    session_done(a->session, a->id);
    attempt_revoke(a);
    attempt_free(a);
}

const char *accounts_device_remove(struct session *s, uint32_t id, const void *message)
{
    const Tracker__DeviceRemove *request = message;
    if (request->id.len == 0 || request->id.len > DEVICE_ID_SIZE) {
        session_fault(s, id, TRACKER__FAULT_CODE__FAULT_NOT_FOUND, "that is no device's number", 0);
        return NULL;
    }
    struct attempt *a = attempt_new(s, id, false);
    if (a == NULL)
        return NULL;
    a->prefix_size = request->id.len;
    memcpy(a->prefix, request->id.data, request->id.len);
    attempt_to_storage(a, remove_run, true, removed);
    return NULL;
}
